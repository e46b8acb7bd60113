"""Stage `text_decoder`: admits requests into its decode loop, which answers each when its search is over."""

from mplug.decode_loop import DecodeLoop
from mplug.decode_metrics import DecodeMetrics
from mplug.decode_request import WITHDRAWN, DecodeRequestParser, Withdrawals, polled, to_outputs
from mplug.runtime import open_decoder
from mplug.triton_adapter import DeferredModel, Metric


class TritonPythonModel(DeferredModel):
    """See `mplug.contract.TEXT_DECODER_MODEL` for tensors."""

    def open(self, context):
        self.parser = DecodeRequestParser.of_stage(context.folder)
        self.withdrawals = Withdrawals()
        self.loop = DecodeLoop(
            open_decoder(context.folder),
            max_slots=int(context.parameters["max_slots"]),
            max_queue=int(context.parameters["max_queue"]),
            max_cache_bytes=int(context.parameters["max_cache_mb"]) << 20,
            observer=DecodeMetrics(Metric, {"model": context.name}).update,
        )

    def admit(self, pending):
        if "CANCEL" in pending.inputs:
            self.withdrawals.withdraw(pending.inputs["CANCEL"])
            pending.send(WITHDRAWN)
            return
        request = self.parser.parse(pending.inputs)
        withdrawn = self.withdrawals.register(pending.inputs.get("TAG"))
        pending.inputs = {}  # what the search needs of them is in the request
        request.done = lambda hypotheses: pending.send(to_outputs(request, hypotheses))
        request.failed = pending.fail
        client_gone = polled(pending.cancelled)
        request.cancelled = lambda: withdrawn.is_set() or client_gone()
        self.loop.submit(request)

    def close(self):
        self.loop.stop()
