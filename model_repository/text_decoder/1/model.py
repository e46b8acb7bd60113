"""Stage `text_decoder`: admits requests into its decode loop, which answers each when its search is over."""

from mplug.decoding.candidate_scores import CandidateScores, open_score_graph
from mplug.decoding.loop import DecodeLoop
from mplug.decoding.metrics import DecodeMetrics
from mplug.decoding.request import WITHDRAWN, DecodeRequestParser, Withdrawals, polled, to_outputs
from mplug.errors import InvalidRequest
from mplug.runtime import open_decoder
from mplug.triton.metrics import Metric
from mplug.triton.models import DeferredModel


class TritonPythonModel(DeferredModel):
    """See `mplug.contract.TEXT_DECODER_MODEL` for tensors."""

    def open(self, context):
        self.parser = DecodeRequestParser.of_stage(context.folder)
        self.withdrawals = Withdrawals()
        self.score_graph = open_score_graph(context.folder)
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
        elif "CANDIDATE_IDS" in pending.inputs:
            self.score(pending)
        else:
            self.search(pending)

    def search(self, pending):
        request = self.parser.parse(pending.inputs)
        request.cancelled = self.cancellation(pending)
        request.done = lambda hypotheses: pending.send(to_outputs(request, hypotheses))
        request.failed = pending.fail
        self.loop.submit(request)

    def score(self, pending):
        if self.score_graph is None:
            raise InvalidRequest("CANDIDATE_IDS: this deployment was built without the ranking of given answers")
        states, mask = self.parser.encoder_inputs(pending.inputs)
        candidates = self.parser.candidates(pending.inputs)
        weight = self.parser.first_token_weight(pending.inputs)

        def done(scores):
            pending.send({"TOKEN_IDS": candidates, "SCORE": scores})

        cancelled = self.cancellation(pending)
        self.loop.submit_job(
            CandidateScores(self.score_graph, states, mask, candidates, done, pending.fail, cancelled, weight)
        )

    def cancellation(self, pending):
        """Whether nobody waits any more. What the work needs of the inputs must have been taken from them."""
        withdrawn = self.withdrawals.register(pending.inputs.get("TAG"))
        pending.inputs = {}
        client_gone = polled(pending.cancelled)
        return lambda: withdrawn.is_set() or client_gone()

    def close(self):
        self.loop.stop()
