"""Outcomes of billing that a caller may act on; the reasons are those of billing.proto's BillingReason."""

from services.kit.errors import DomainError, Kind


class InsufficientCredits(DomainError):
    """Nothing is available, or too little for an answer worth starting. Metadata: `available`, in credits."""

    kind, reason, detail = Kind.PRECONDITION, "INSUFFICIENT_CREDITS", "The workspace has too few credits available."


class PriceUnknown(DomainError):
    """The price list has no such provider and model, or no price for this kind of use; unknown is never free."""

    kind, reason, detail = Kind.INVALID, "PRICE_UNKNOWN", "The price list has no such model."


class HoldReleased(DomainError):
    """The hold was given back, or expired, before this call: its work must not start."""

    kind, reason, detail = Kind.PRECONDITION, "HOLD_RELEASED", "The hold has been released."


class IdempotencyKeyReused(DomainError):
    """The user's idempotency key belongs to another grant."""

    kind, reason, detail = Kind.INVALID, "IDEMPOTENCY_KEY_REUSED", "The idempotency key was used with another request."
