"""Public model `match`."""

from mplug.tasks.retrieval import MatchTask
from mplug.triton.models import TaskModel


class TritonPythonModel(TaskModel):
    """See `mplug.tasks.retrieval` for what it does."""

    def create(self, context):
        return MatchTask.of_folder(context.folder)
