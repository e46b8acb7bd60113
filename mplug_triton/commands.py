"""The table of the subcommands of `mplug`. A new one is a row: a program of the repository, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass

ASK, SERVE, BULK, TRAIN = (
    "Ask a running server",
    "Build and serve",
    "Whole corpora, without a server",
    "Train and evaluate",
)
#: The extra of a command that needs no more than the package itself.
NO_EXTRA = ""


@dataclass(frozen=True)
class Command:
    """A subcommand of `mplug`."""

    name: str
    program: str  #: a script, relative to the repository, or a module to be run as with `python -m`
    group: str  #: its heading in the list of commands
    summary: str  #: one line, for a newcomer
    extra: str = NO_EXTRA  #: the extra of the package that brings what it imports
    subcommands: tuple[str, ...] = ()  #: words that its own command line begins with

    @property
    def is_script(self) -> bool:
        return self.program.endswith(".py")


COMMANDS = {
    command.name: command
    for command in (
        Command("caption", "clients/caption.py", ASK, "say what pictures or a video show"),
        Command("ask", "clients/ask.py", ASK, "answer a question about pictures or a video"),
        Command("ground", "clients/ground.py", ASK, "find what an expression names, and draw a box around it"),
        Command("match", "clients/match.py", ASK, "rank texts by how well they fit a picture"),
        Command("nlvr", "clients/nlvr.py", ASK, "is a statement true of two pictures?"),
        Command("entail", "clients/entail.py", ASK, "does a picture entail, contradict or leave open a sentence?"),
        Command("embed", "clients/embed.py", ASK, "pictures, videos and texts as vectors"),
        Command(
            "retrieve",
            "clients/retrieve.py",
            ASK,
            "search a folder of pictures by words or by a picture",
            subcommands=("index", "search"),
        ),
        Command("batch", "clients/batch.py", ASK, "caption a whole folder, or answer a CSV of questions"),
        Command("fetch", "builders/fetch.py", SERVE, "where published checkpoints are; is a download whole?"),
        Command("build", "builders/build.py", SERVE, "make a Triton repository of a checkpoint", "build"),
        Command("serve", "mplug.server", SERVE, "serve a built repository", "serve"),
        Command(
            "openai", "deploy/openai/run.py", SERVE, "an OpenAI-compatible endpoint in front of a server", "openai"
        ),
        Command("page", "webpage/app.py", SERVE, "a page to try a server in the browser", "page"),
        Command("bulk-caption", "bulk/caption.py", BULK, "caption a corpus: a folder, parquet, WebDataset", "bulk"),
        Command("bulk-ask", "bulk/ask.py", BULK, "ask about every picture of a corpus", "bulk"),
        Command("bulk-embed", "bulk/embed.py", BULK, "every picture of a corpus as a vector", "bulk"),
        Command("bulk-export", "bulk/export.py", BULK, "such vectors for Milvus or Qdrant", "bulk"),
        Command("bulk-index", "bulk/index.py", BULK, "a FAISS index of such vectors, for retrieve", "bulk"),
        Command("evaluate", "builders/evaluate.py", TRAIN, "score a checkpoint or a server on a data set", "train"),
        Command("finetune", "builders/train/finetune.py", TRAIN, "fine-tune a checkpoint for one task", "train"),
        Command("train", "builders/train/pretrain.py", TRAIN, "pre-train with the paper's objectives", "train"),
        Command("reproduce", "builders/reproduce.py", TRAIN, "our figures beside the published ones", "train"),
        Command(
            "rehearse", "builders/random_checkpoint.py", TRAIN, "a published checkpoint with random weights", "build"
        ),
    )
}
