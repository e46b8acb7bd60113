"""Ask about a picture, and search pictures by text, from LangChain through the OpenAI-compatible endpoint.

pip install langchain-openai
python examples/langchain_chat.py PICTURE QUESTION [--url http://localhost:8080/v1]
"""

from __future__ import annotations

import argparse
import base64
import os
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

EXAMPLES = Path(__file__).parent


def data_uri(path: Path) -> str:
    """Return a picture as a data URI; the server reads its format from the bytes."""
    return f"data:image/{path.suffix.lstrip('.')};base64,{base64.b64encode(path.read_bytes()).decode()}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://localhost:8080/v1", help="the endpoint (default: %(default)s)")
    options = parser.parse_args()
    key = os.environ.get("MPLUG_OPENAI_API_KEY", "none")

    # A picture and a question, as one message of LangChain's.
    model = ChatOpenAI(model="mplug", base_url=options.url, api_key=key)
    picture = {"type": "image_url", "image_url": {"url": data_uri(options.picture)}}
    print(model.invoke([HumanMessage([picture, {"type": "text", "text": options.question}])]).content)

    # A vector store over pictures: what is stored is their data URIs, what is searched is text.
    # check_embedding_ctx_length=False: texts are sent as they are, not as OpenAI's token ids.
    embeddings = OpenAIEmbeddings(model="mplug", base_url=options.url, api_key=key, check_embedding_ctx_length=False)
    store = InMemoryVectorStore(embeddings)
    paths = sorted(EXAMPLES.glob("*.png"))
    store.add_texts([data_uri(path) for path in paths], [{"name": path.name} for path in paths])
    print(store.similarity_search(options.question, k=1)[0].metadata["name"])


if __name__ == "__main__":
    main()
