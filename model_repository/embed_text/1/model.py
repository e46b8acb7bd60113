"""Public model `embed_text`."""

from mplug.tasks.retrieval import EmbedTextTask
from mplug.triton.models import TaskModel


class TritonPythonModel(TaskModel):
    """See `mplug.tasks.retrieval` for what it does."""

    def create(self, context):
        return EmbedTextTask.of_folder(context.folder)
