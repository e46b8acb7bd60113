"""Stage `text_encoder`: runs its compiled graph on the batches that Triton's dynamic batcher brings."""

from mplug.runtime import open_graph
from mplug.runtime.stage_inputs import StageInputs
from mplug.triton.adapter import StageModel


class TritonPythonModel(StageModel):
    """See `mplug.contract` for tensors."""

    def create(self, context):
        self.inputs = StageInputs.of_stage(context.folder, "text_encoder")
        return open_graph(context.folder, "text_encoder")

    def check(self, inputs):
        self.inputs.check(inputs)
