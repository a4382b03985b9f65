"""How a run asks a language model that sees: as its prompter asks, and out of the same purse."""

import tenacity

from pipeline.config import EndpointConfig, PrompterConfig, Run, VerifierConfig
from pipeline.prompter.dialogue import Request
from pipeline.prompter.endpoint import Busy, Endpoint
from pipeline.prompter.prices import load_price
from pipeline.types import Answer
from pipeline.verifier.vision import VisionOpinion
from storage.answers import Answers
from storage.runs import RunFolder
from workers.asking import Asker
from workers.broker import Broker
from workers.describing import admission_of


def endpoint_of(config: VerifierConfig, timeout_s: float) -> Endpoint:
    """Where the configured vision model is. Raises InputError if there is no key."""
    model, base_url = config.opinions.vision, config.opinions.vision_base_url
    return Endpoint(PrompterConfig(kind="openai", model=model, base_url=base_url), timeout_s)


def vision_alone(config: VerifierConfig, limits: EndpointConfig) -> VisionOpinion:
    """Asks without a run: nothing is cached or counted. Raises InputError if there is no key."""
    endpoint = endpoint_of(config, limits.timeout_s)
    price = load_price(limits.prices, config.opinions.vision)

    def ask(request: Request) -> Answer:
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Busy),
            wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=30),
            stop=tenacity.stop_after_delay(limits.patience_s),
            reraise=True,
        )
        return patiently(lambda: endpoint.ask(request, price))

    return VisionOpinion(config.opinions.vision, endpoint.address, ask)


def vision_of(folder: RunFolder, run: Run, broker: Broker) -> VisionOpinion:
    """Asks on behalf of a run. Raises InputError if there is no key."""
    endpoint = endpoint_of(run.verifier, run.endpoint.timeout_s)
    asker = Asker(
        run.model_copy(update={"price": run.vision_price}),
        endpoint,
        Answers(folder.store),
        admission_of(folder, run, broker),
    )
    return VisionOpinion(run.verifier.opinions.vision, endpoint.address, asker.ask, run.name)
