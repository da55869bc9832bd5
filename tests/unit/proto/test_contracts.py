"""What the .proto files promise to those who call, held against the code that keeps it."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module

import pytest

from docs.contracts import Enum, Message, Method, Service, read
from services.common.providers import errors as provider_errors
from services.kit import errors, peers
from services.kit.errors import DomainError

FILES = read()
SERVICES = [service for file in FILES for service in file.services]
METHODS = [method for service in SERVICES for method in service.methods]
MESSAGES: Mapping[str, Message] = {message.full_name: message for file in FILES for message in file.messages}
REASONS: Mapping[str, Enum] = {file.package: enum for file in FILES for enum in file.enums if enum.is_reasons}

CALLER = "backendai.common.v1.Caller"
COMMON = "backendai.common.v1"
PROCESSES = {"gateway", "chat", "billing", "agent", "speech", "translate"}
# A call of these that is repeated may do its work twice: a retry policy must leave them alone. To take a method out of
# here is a promise to others, and to put one in takes a promise back.
NOT_TO_BE_REPEATED = {
    "BillingService.GrantCredits",
    "ChatService.CreateSession",
    "ChatService.RegenerateAnswer",
    "ChatService.SendMessage",
    "ChatService.TogglePublic",
    "SpeechService.Transcribe",
    "TaskService.ClaimTasks",
    "TranslateService.TranslateText",
}
# Who spends, as the ledger names it: the service has made sure before that the user may.
SPENDS = "BillingService.HoldCredits"

each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))


def name_of(method: Method) -> str:
    """Service and method without the package."""
    return f"{method.service.rpartition('.')[2]}.{method.name}"


def service_of(method: Method) -> Service:
    """The service that a method is in."""
    return next(service for service in SERVICES if service.full_name == method.service)


def package_of(method: Method) -> str:
    """The package that a method is in."""
    return method.service.rpartition(".")[0]


def types_within(message: str) -> Iterator[str]:
    """The types of a message's fields, and of theirs."""
    for field in MESSAGES[message].fields if message in MESSAGES else ():
        yield field.type_name
        yield from types_within(field.type_name)


def errors_of(*modules: str) -> Sequence[type[DomainError]]:
    """The errors with a reason that the modules define."""
    kinds = (kind for module in modules for kind in vars(import_module(module)).values())
    return [
        kind
        for kind in kinds
        if isinstance(kind, type)
        and issubclass(kind, DomainError)
        and kind.__module__ in modules
        and hasattr(kind, "reason")
    ]


def own_errors(package: str) -> Sequence[type[DomainError]]:
    """The errors that stand behind a package's reasons."""
    if package == COMMON:
        return errors_of(errors.__name__, provider_errors.__name__, peers.__name__)
    return errors_of(f"services.{package.split('.')[1]}.errors")


# --- who may call ---


@each_method
def test_every_method_says_who_may_call_it(method: Method) -> None:
    assert method.callers
    assert set(method.callers) <= PROCESSES


@each_method
def test_only_the_gateway_speaks_for_a_user(method: Method) -> None:
    names_user = any(field.name == "user_id" for field in MESSAGES[method.request].fields)
    if CALLER in types_within(method.request) or (names_user and name_of(method) != SPENDS):
        assert method.callers == ["gateway"]


def test_only_the_agent_works_on_tasks() -> None:
    (tasks,) = (service for service in SERVICES if service.name == "TaskService")
    assert {caller for method in tasks.methods for caller in method.callers} == {"agent"}


def test_the_agent_calls_nothing_else() -> None:
    assert {method.service for method in METHODS if "agent" in method.callers} == {"backendai.chat.v1.TaskService"}


# --- why calls fail ---


@pytest.mark.parametrize("package", REASONS)
def test_a_service_gives_the_reasons_of_its_proto_and_no_other(package: str) -> None:
    assert {kind.reason for kind in own_errors(package)} == set(REASONS[package].reasons)


def test_every_service_has_reasons() -> None:
    assert REASONS.keys() == {COMMON, *(service.full_name.rpartition(".")[0] for service in SERVICES)}


@pytest.mark.parametrize("enum", REASONS.values(), ids=lambda enum: str(enum.name))
def test_every_reason_has_an_example(enum: Enum) -> None:
    assert [value.name for value in enum.values[1:] if "Example: " not in value.comment.summary] == []


@each_method
def test_a_method_fails_with_codes_and_reasons_that_there_are(method: Method) -> None:
    known = {(kind.kind.value.name, kind.reason) for package in REASONS for kind in own_errors(package)}
    told = [(error.code, error.reason) for error in (*service_of(method).errors, *method.errors)]
    assert [pair for pair in told if pair not in known] == []
    assert len(set(method.errors)) == len(method.errors)


@pytest.mark.parametrize("package", REASONS)
def test_some_method_says_when_it_gives_a_reason(package: str) -> None:
    told = {
        error.reason
        for method in METHODS
        if package in (COMMON, package_of(method))
        for error in (*service_of(method).errors, *method.errors)
    }
    assert set(REASONS[package].reasons) - told == set()


@each_method
def test_a_method_that_reads_pages_says_that_a_token_can_be_wrong(method: Method) -> None:
    reads_pages = "backendai.common.v1.PageRequest" in types_within(method.request)
    assert reads_pages == ("INVALID_CURSOR" in {error.reason for error in method.errors})


# --- what may be repeated ---


def test_what_a_retry_policy_may_repeat_stays_so() -> None:
    assert {name_of(method) for method in METHODS if not method.idempotency} == NOT_TO_BE_REPEATED


@each_method
def test_a_method_that_changes_something_says_what_a_repeated_call_does(method: Method) -> None:
    says = any(paragraph.startswith("Repeat: ") for paragraph in method.comment.paragraphs)
    assert says == (method.idempotency != "NO_SIDE_EFFECTS")


@each_method
def test_a_key_that_makes_a_call_repeatable_is_spoken_of(method: Method) -> None:
    takes_key = any(field.name == "idempotency_key" for field in MESSAGES[method.request].fields)
    if takes_key:
        assert "key" in method.comment.summary or "as SendMessage" in method.comment.summary
