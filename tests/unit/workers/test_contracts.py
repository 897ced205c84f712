"""The search for what meets a contract, with candidates whose figures are set by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from app.domain.artifacts import ArtifactFormat, ArtifactKind, Measurement, QualityCard
from app.domain.error_data import error_from_dict
from app.domain.errors import BitmillError, ContractUnsatisfiable, DiskFull, QualityGateFailed
from app.domain.evaluation import EngineFigures, SpeedFigures
from app.domain.jobs import JobState
from app.persistence.artifacts import ArtifactRepository
from app.persistence.jobs import JobRepository
from app.persistence.new_jobs import new_quantization
from app.persistence.tables import ArtifactRow, JobRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.checkpoints import write_safetensors
from tests.fakes.dispatcher import RecordingDispatcher
from workers.attempt import Attempt
from workers.child import Child, ChildCrashed, Message
from workers.contracts import ContractSearch
from workers.presence import Presence
from workers.probe import Probe
from workers.publisher import Result
from workers.supervisor import Supervisor

BF16 = {"type": "none", "dtype": "bf16"}
FP32 = {"type": "none", "dtype": "fp32"}
NF4 = {"type": "bitsandbytes", "quantization": "nf4"}


class SteppedSupervisor(Supervisor):
    """Makes what was prepared, by label, in place of starting processes; everything else is the real one."""

    def __init__(self, database: Database, settings: Settings, presence: Presence, source: Path) -> None:
        super().__init__(database, settings, presence)
        self.source = source
        self.prepared: dict[str, ArtifactRow | BaseException] = {}
        self.rate = 100.0
        self.made: list[str] = []
        self.timed: list[str] = []

    def make(self, attempt: Attempt) -> ArtifactRow | Result:
        self.made.append(attempt.label)
        found = self.prepared[attempt.label]
        if isinstance(found, BaseException):
            raise found
        return found

    def child(self, attempt: Attempt, step: str) -> Child:
        return SilentChild(step)

    def wait_for(self, child: Child, attempt: Attempt, kind: str) -> Message:
        if child.module == "resolve":
            return {"source": {"name": "tiny", "path": str(self.source), "fingerprint": "0" * 64, "size_bytes": 1,
                               "parameter_count": 1, "bits_per_weight": 16.0, "tensor_types": {}}}  # fmt: skip
        self.timed.append(attempt.label)
        speed = SpeedFigures(
            requests=1, prompt_tokens=1, output_tokens=1, time_to_first_token_seconds=0.1,
            prefill_tokens_per_second=1.0, decode_tokens_per_second=self.rate,
        )  # fmt: skip
        figures = EngineFigures(
            engine="transformers", engine_version=None, device="cpu", context_length=64, load_seconds=1.0,
            resident_bytes=1000, gpu_bytes=None, predicted_bytes=1000, speed=(speed,),
        )  # fmt: skip
        return {"serving": figures.model_dump(mode="json")}


class SilentChild(Child):
    """No process: `module` is the step that it would take."""

    def __init__(self, step: str) -> None:
        super().__init__(step, {}, log=Path())

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, message: Message) -> None:
        pass


class Bench:
    def __init__(self, database: Database, settings: Settings, source: Path) -> None:
        presence = Presence(database, settings, RecordingDispatcher())
        presence.probe = Probe.model_construct(methods={"none": None, "bitsandbytes": None, "gptq": "no library"})
        self.database = database
        self.supervisor = SteppedSupervisor(database, settings, presence, source)

    def prepare(self, label: str, size: int, divergence: float, *, model: str = "tiny") -> None:
        card = QualityCard(
            dataset="builtin", dataset_sha256="", context_length=64, scored_tokens=10,
            perplexity=Measurement(value=11.0, standard_error=0.1), kl_divergence_p99=1.0, generated_text="",
            reference_perplexity=Measurement(value=10.0, standard_error=0.1),
            kl_divergence=Measurement(value=divergence, standard_error=0.001),
            top1_agreement=Measurement(value=0.9, standard_error=0.01),
        )  # fmt: skip
        row = ArtifactRow(
            id=f"artifact-{label}", name=f"{model}:{label}", kind=ArtifactKind.QUANTIZED, path=label, source="tiny",
            format=ArtifactFormat.SAFETENSORS, source_fingerprint="0" * 64, key=label, method={"type": "none"},
            versions={}, size_bytes=size, parameter_count=1, bits_per_weight=16.0, tensor_types={},
            manifest_sha256="0" * 64, created_at=time.time(), quality=card.model_dump(mode="json"),
        )  # fmt: skip
        with self.database.transaction() as session:
            ArtifactRepository(session).add(row)
        self.supervisor.prepared[label] = row

    def claim(self, contract: dict[str, Any], *candidates: dict[str, Any], method: dict[str, Any] | None = None) -> str:
        wanted = method or {"type": "auto", "candidates": list(candidates)}
        job = new_quantization("tiny", wanted, "cpu", request={"contract": contract})
        with self.database.transaction() as session:
            JobRepository(session).add(job)
        return job.id

    def run(self, job_id: str) -> JobRow:
        self.supervisor.run(job_id)
        with self.database.reading() as session:
            return JobRepository(session).get(job_id)


@pytest.fixture
def bench(database: Database, settings: Settings, tmp_path: Path) -> Bench:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 64}')
    write_safetensors(folder / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": ("BF16", [128, 64])})
    return Bench(database, settings, folder)


def test_the_smallest_that_meets_the_terms_is_taken(bench: Bench) -> None:
    bench.prepare("bnb-nf4", 5_000, 0.2)
    bench.prepare("bf16", 16_000, 0.01)
    job = bench.run(bench.claim({"max_kl_divergence": 0.05}, FP32, BF16, NF4))
    assert (job.state, job.quantized_model, job.reused) == ("succeeded", "tiny:bf16", True)
    assert bench.supervisor.made == ["bnb-nf4", "bf16"]  # by predicted size; the largest was not needed
    assert job.result is not None
    nf4, bf16 = job.result["tried"]
    assert nf4["broken_terms"] == ["max_kl_divergence is 0.05, and it has 0.2"]
    assert (nf4["meets_contract"], bf16["meets_contract"]) == (False, True)
    assert bf16["measured"]["kl_divergence"] == {"value": 0.01, "standard_error": 0.001}
    assert bf16["measured"]["perplexity_ratio"]["value"] == pytest.approx(1.1)
    assert bench.supervisor.timed == []  # no term asks for it


def test_a_result_with_a_longer_name_than_jobs_take_is_timed(bench: Bench) -> None:
    bench.prepare("bf16", 16_000, 0.01, model="t" * 510)
    job = bench.run(bench.claim({"max_memory_bytes": 10**9}, method=BF16))
    assert (job.state, bench.supervisor.timed) == ("succeeded", ["bf16"])


def test_where_none_does_the_job_fails_with_what_was_found(bench: Bench) -> None:
    bench.prepare("bnb-nf4", 5_000, 0.2)
    bench.prepare("bf16", 16_000, 0.3)
    job = bench.run(bench.claim({"max_kl_divergence": 0.05, "max_size_bytes": 20_000}, BF16, FP32, NF4))
    assert job.state == "failed"
    assert job.error is not None
    assert (job.error["code"], job.error["param"]) == ("contract_unsatisfiable", "contract")
    details = job.error["details"]
    assert [entry["label"] for entry in details["tried"]] == ["bnb-nf4", "bf16"]
    assert [entry["on_pareto_front"] for entry in details["tried"]] == [True, False]
    (skipped,) = details["skipped"]
    assert skipped["label"] == "fp32"
    assert "max_size_bytes is 20,000, and 32,768 are predicted" in skipped["reason"]
    assert isinstance(error_from_dict(job.error), ContractUnsatisfiable)


def test_a_candidate_that_cannot_be_made_is_passed_over(bench: Bench) -> None:
    bench.supervisor.prepared["bnb-nf4"] = QualityGateFailed("it repeats one token")
    bench.supervisor.prepared["bf16"] = ChildCrashed("killed by SIGKILL")
    bench.prepare("fp32", 32_000, 0.0)
    job = bench.run(bench.claim({"max_kl_divergence": 0.05}, {"type": "gptq"}, NF4, BF16, FP32))
    assert (job.state, job.quantized_model) == ("succeeded", "tiny:fp32")
    assert job.result is not None
    codes = [(entry["error"] or {}).get("code") for entry in job.result["tried"]]
    assert codes == ["quality_gate_failed", "job_process_crashed", None]
    assert job.result["skipped"][0]["method"] == {"type": "gptq"}
    assert "lacks" in job.result["skipped"][0]["reason"]


def test_a_full_disk_is_nobody_elses_fault(bench: Bench) -> None:
    bench.supervisor.prepared["bnb-nf4"] = DiskFull("no room was left")
    job = bench.run(bench.claim({"max_kl_divergence": 0.05}, NF4, BF16))
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "disk_full")


def test_the_engine_is_started_only_where_nothing_cheaper_speaks_against_it(bench: Bench) -> None:
    bench.prepare("bnb-nf4", 5_000, 0.2)
    bench.prepare("bf16", 16_000, 0.01)
    contract = {"max_kl_divergence": 0.05, "min_decode_tokens_per_second": 120.0}
    job = bench.run(bench.claim(contract, NF4, BF16))
    assert job.state == "failed"
    assert bench.supervisor.timed == ["bf16"]
    assert job.result is not None
    assert job.result["tried"][1]["broken_terms"] == ["min_decode_tokens_per_second is 120, and it has 100"]
    assert job.result["tried"][1]["measured"]["memory_bytes"] == 1000


def test_an_error_that_nobody_foresaw_ends_the_job_at_once(bench: Bench) -> None:
    bench.supervisor.prepared["bf16"] = RuntimeError("nobody thought of this")
    job = bench.run(bench.claim({"max_kl_divergence": 0.05}, BF16))
    assert (job.state, job.losses) == ("failed", 0)
    assert job.error is not None
    assert "RuntimeError" in job.error["message"]


def test_an_attempt_goes_on_from_what_the_last_one_found(bench: Bench) -> None:
    bench.prepare("bnb-nf4", 5_000, 0.2)
    bench.supervisor.prepared["bf16"] = SystemExit("the worker dies here")
    job_id = bench.claim({"max_kl_divergence": 0.05}, NF4, BF16)
    with pytest.raises(SystemExit):
        bench.run(job_id)
    with bench.database.transaction() as session:
        jobs = JobRepository(session)
        kept = jobs.get(job_id)
        assert kept.result is not None
        assert [entry["label"] for entry in kept.result["tried"]] == ["bnb-nf4"]
        jobs.transition(job_id, JobState.QUEUED, message="Its worker was lost.", attempt=kept.attempt)
    bench.prepare("bf16", 16_000, 0.01)
    assert bench.run(job_id).quantized_model == "tiny:bf16"
    assert bench.supervisor.made == ["bnb-nf4", "bf16", "bf16"]


def test_a_job_with_a_method_of_its_own_must_meet_its_contract(bench: Bench) -> None:
    bench.prepare("bf16", 16_000, 0.01)
    met = bench.run(bench.claim({"max_kl_divergence": 0.05}, method=BF16))
    broken = bench.run(bench.claim({"max_kl_divergence": 0.005}, method=BF16))
    assert (met.state, met.quantized_model) == ("succeeded", "tiny:bf16")
    assert broken.error is not None
    assert broken.error["code"] == "contract_unsatisfiable"


def test_what_such_a_job_fails_with_is_its_own_error(bench: Bench) -> None:
    error: BitmillError = QualityGateFailed("it repeats one token")
    bench.supervisor.prepared["bf16"] = error
    job = bench.run(bench.claim({"max_kl_divergence": 0.05}, method=BF16))
    assert job.error == error.to_dict()


def test_a_wish_to_cancel_is_heard_between_candidates(bench: Bench) -> None:
    bench.prepare("bnb-nf4", 5_000, 0.2)
    job_id = bench.claim({"max_kl_divergence": 0.05}, NF4, BF16)
    judge = ContractSearch._judge

    def cancel_then_judge(search: ContractSearch, attempt: Attempt, row: ArtifactRow) -> dict[str, Any]:
        with bench.database.transaction() as session:
            JobRepository(session).transition(job_id, JobState.CANCELLING, message="Cancel.")
        return judge(search, attempt, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContractSearch, "_judge", cancel_then_judge)
        assert bench.run(job_id).state == "cancelled"
    assert bench.supervisor.made == ["bnb-nf4"]
