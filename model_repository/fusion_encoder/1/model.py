"""Stage `fusion_encoder`: runs its compiled graph on the batches that Triton's dynamic batcher brings."""

from mplug.runtime import open_graph
from mplug.triton_adapter import StageModel


class TritonPythonModel(StageModel):
    """See `mplug.contract` for tensors."""

    def create(self, context):
        return open_graph(context.folder, "fusion_encoder")
