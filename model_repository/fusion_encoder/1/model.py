"""Stage `fusion_encoder`: runs its compiled graph on the batches that Triton's dynamic batcher brings."""

from mplug.triton.models import EncoderModel


class TritonPythonModel(EncoderModel):
    """See `mplug.contract` for tensors."""

    stage = "fusion_encoder"
