"""Public model `embed_image`."""

from mplug.tasks.retrieval import EmbedImageTask
from mplug.triton.models import TaskModel


class TritonPythonModel(TaskModel):
    """See `mplug.tasks.retrieval` for what it does."""

    def create(self, context):
        return EmbedImageTask.of_folder(context.folder)
