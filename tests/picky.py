"""The product's app with stages that take no torch: white pictures, and a verifier that likes them.

Everything else is the product's own: stores, messages, tasks, and the look for a model's folder.
"""

from pipeline.config import ProposerConfig, VerifierConfig
from pipeline.models import location
from pipeline.types import ModelRef
from workers import propose, resources, verify
from workers.celery import app

kept = resources.folder, propose.encode, verify.decode

from bench import nothing  # noqa: E402

resources.folder, propose.encode, verify.decode = kept

__all__ = ["app"]


def _proposer(config: ProposerConfig, ref: ModelRef) -> nothing.EmptyProposer:
    location(ref, "base")
    return nothing.EmptyProposer()


def _verifier(config: VerifierConfig, ref: ModelRef) -> nothing.EmptyVerifier:
    location(ref, "verifier")
    return nothing.EmptyVerifier()


resources.proposer = _proposer  # type: ignore[assignment]
resources.verifier = _verifier  # type: ignore[assignment]
