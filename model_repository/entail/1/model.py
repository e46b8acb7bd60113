"""Public model `entail`."""

from mplug.tasks.judgement import EntailTask
from mplug.triton.models import TaskModel


class TritonPythonModel(TaskModel):
    """See `mplug.tasks.judgement` for what it does."""

    def create(self, context):
        return EntailTask.of_folder(context.folder)
