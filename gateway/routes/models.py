"""What can be chosen: `/api/models/`."""

from __future__ import annotations

from typing import Literal

from backendai.billing.v1 import billing_pb2 as pb
from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from gateway.answers import Credits, answer
from gateway.calls import KnownCaller
from gateway.problems import problems
from gateway.routing import PrivateRoute
from gateway.settings import Settings
from services.kit.money import to_credits

router = APIRouter(prefix="/api/models", tags=["models"], route_class=PrivateRoute)


class TierOut(TypedDict):
    """Prices in credits per million tokens, for prompts of up to so many tokens (null: of any size)."""

    up_to_input_tokens: int | None
    input_price_per_million: Credits
    output_price_per_million: Credits


class ModelOut(TypedDict):
    """A model that can be used now. Prices are in credits; those of the first tier stand beside the list of tiers."""

    provider: str
    model: str
    kind: Literal["chat", "speech"]
    context_window: int | None
    max_output_tokens: int | None
    input_price_per_million: Credits | None
    output_price_per_million: Credits | None
    price_tiers: list[TierOut]
    audio_price_per_minute: Credits | None
    priced_on: str
    is_default: bool


class ModelPage(TypedDict):
    """All of them."""

    next: None
    previous: None
    results: list[ModelOut]


def _tier_out(tier: pb.RateTier) -> TierOut:
    return {
        "up_to_input_tokens": tier.up_to_input_tokens or None,
        "input_price_per_million": to_credits(tier.input_nano_per_million),
        "output_price_per_million": to_credits(tier.output_nano_per_million),
    }


def model_out(model: pb.Model, settings: Settings) -> ModelOut:
    """A model as JSON."""
    tiers = [_tier_out(tier) for tier in model.rates.tiers]
    return {
        "provider": model.provider,
        "model": model.model,
        "kind": "chat" if tiers else "speech",
        "context_window": model.context_window_tokens or None,
        "max_output_tokens": model.max_output_tokens or None,
        "input_price_per_million": tiers[0]["input_price_per_million"] if tiers else None,
        "output_price_per_million": tiers[0]["output_price_per_million"] if tiers else None,
        "price_tiers": tiers,
        "audio_price_per_minute": None if tiers else to_credits(model.audio_nano_per_minute),
        "priced_on": model.priced_on,
        "is_default": (model.provider, model.model) == (settings.default_ai_provider, settings.default_ai_model),
    }


@router.get("/", operation_id="list_models", response_model=ModelPage, responses=problems(401))
async def list_models(call: KnownCaller) -> Response:
    """The models of the configured providers, with their prices."""
    settings = call.parts.settings
    found = await call.parts.billing.ListModels(pb.ListModelsRequest())
    usable = [model_out(model, settings) for model in found.models if model.provider in settings.providers]
    page: ModelPage = {"next": None, "previous": None, "results": usable}
    return answer(page)
