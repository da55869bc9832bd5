"""What can go wrong with a transcription beside its provider; the reasons are those of speech.proto's SpeechReason."""

from services.kit.errors import DomainError, Kind


class AudioEmpty(DomainError):
    """The file has no bytes."""

    kind, reason, detail = Kind.INVALID, "AUDIO_EMPTY", "The audio file is empty."


class AudioTooLarge(DomainError):
    """The file has more bytes than providers take."""

    kind, reason, detail = Kind.INVALID, "AUDIO_TOO_LARGE", "The audio file is larger than 25 MiB."


class AudioTypeUnsupported(DomainError):
    """By its content the file is of none of the types that are taken, whatever it is named."""

    kind, reason = Kind.INVALID, "AUDIO_TYPE_UNSUPPORTED"
    detail = "By its content the file is none of flac, mp3, mp4, m4a, mpeg, mpga, oga, ogg, wav, webm."


class AudioUndecodable(DomainError):
    """The file is cut off, broken, has no sound, takes too much work to decode, or has a codec that is not taken."""

    kind, reason, detail = Kind.INVALID, "AUDIO_UNDECODABLE", "The audio file is broken or cut off, or has no sound."


class AudioTooShort(DomainError):
    """There is less sound than a provider takes."""

    kind, reason, detail = Kind.INVALID, "AUDIO_TOO_SHORT", "The audio is shorter than 0.1 seconds."


class AudioTooLong(DomainError):
    """There is more sound than this provider takes. Metadata: `max_seconds`."""

    kind, reason, detail = Kind.INVALID, "AUDIO_TOO_LONG", "The audio is too long."


class LanguageUnknown(DomainError):
    """The language is no ISO 639-1 code. Metadata: `field`."""

    kind, reason, detail = Kind.INVALID, "LANGUAGE_UNKNOWN", "The language is not an ISO 639-1 code, such as en."


class LanguageUnsupported(DomainError):
    """The provider does not recognise this language. Metadata: `field`."""

    kind, reason, detail = Kind.INVALID, "LANGUAGE_UNSUPPORTED", "The provider does not recognise this language."


class ProviderNotConfigured(DomainError):
    """No provider is configured."""

    kind, reason, detail = Kind.INVALID, "PROVIDER_NOT_CONFIGURED", "No provider of transcriptions is configured."


class TooManyTries(DomainError):
    """The request was begun and given up too often under one hold id, which its idempotency key names."""

    kind, reason = Kind.PRECONDITION, "TOO_MANY_TRIES"
    detail = "The request was given up too often under its idempotency key: use another one."
