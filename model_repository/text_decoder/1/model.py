"""Stage `text_decoder`: admits requests into its decode loop, which answers each when its search is over."""

from mplug.decoding.metrics import DecodeMetrics
from mplug.decoding.service import DecoderService
from mplug.triton.metrics import Metric
from mplug.triton.models import DeferredModel


class TritonPythonModel(DeferredModel):
    """See `mplug.contract.TEXT_DECODER_MODEL` for tensors."""

    def open(self, context):
        limits = {name: int(context.parameters[name]) for name in ("max_slots", "max_queue", "max_cache_mb")}
        observer = DecodeMetrics(Metric, {"model": context.name}).update
        self.service = DecoderService.open(context.folder, device=context.device, observer=observer, **limits)

    def admit(self, pending):
        inputs, pending.inputs = pending.inputs, {}
        self.service.submit(inputs, pending.send, pending.fail, pending.cancelled)

    def close(self):
        self.service.close()
