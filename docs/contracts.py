"""What the .proto files say, comments included: services, methods with their errors, messages and enums."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from backendai.common.v1 import common_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

PROTO = Path(__file__).parent.parent / "proto"
PACKAGE = "backendai."
ERRORS = re.compile(r"^Errors( of every method)?:")
ERROR = re.compile(r"([A-Z_]+) ([A-Z_]+): (.+)")
REPEATABLE = {
    MethodOptions.IDEMPOTENCY_UNKNOWN: "",
    MethodOptions.NO_SIDE_EFFECTS: "NO_SIDE_EFFECTS",
    MethodOptions.IDEMPOTENT: "IDEMPOTENT",
}


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment's paragraphs; an item of a list is a paragraph that begins with a dash."""

    paragraphs: Sequence[str]

    @property
    def summary(self) -> str:
        """All of it in one line."""
        return " ".join(self.paragraphs)


@dataclass(frozen=True, slots=True)
class Error:
    """One way a method can fail: the gRPC code, the reason, and when."""

    code: str
    reason: str
    when: str


@dataclass(frozen=True, slots=True)
class Field:
    """A field. `type` is as the .proto file writes it, without the package."""

    name: str
    type: str
    comment: Comment
    one_of: str
    type_name: str
    """The full name of a message or enum; "" for a scalar."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message."""

    name: str
    full_name: str
    comment: Comment
    fields: Sequence[Field]


@dataclass(frozen=True, slots=True)
class Value:
    """A value of an enum."""

    name: str
    comment: Comment


@dataclass(frozen=True, slots=True)
class Enum:
    """An enum."""

    name: str
    comment: Comment
    values: Sequence[Value]

    @property
    def prefix(self) -> str:
        """What its values' names begin with."""
        return self.values[0].name.removesuffix("UNSPECIFIED")

    @property
    def is_reasons(self) -> bool:
        """Whether its values are why calls fail."""
        return self.name.endswith("Reason")

    @property
    def reasons(self) -> Sequence[str]:
        """The values as they travel, without the one that is not used."""
        return [value.name.removeprefix(self.prefix) for value in self.values[1:]]


@dataclass(frozen=True, slots=True)
class Method:
    """A method. `idempotency` is the name of its level, "" for one that is not marked."""

    service: str
    name: str
    request: str
    response: str
    is_stream: bool
    comment: Comment
    errors: Sequence[Error]
    callers: Sequence[str]
    idempotency: str


@dataclass(frozen=True, slots=True)
class Service:
    """A service. `errors` are those that every one of its methods can answer."""

    name: str
    full_name: str
    comment: Comment
    errors: Sequence[Error]
    methods: Sequence[Method]


@dataclass(frozen=True, slots=True)
class File:
    """One .proto file."""

    package: str
    comment: Comment
    services: Sequence[Service]
    messages: Sequence[Message]
    enums: Sequence[Enum]


def read(folder: Path = PROTO) -> Sequence[File]:
    """Every .proto file of ours, with what is common to all first."""
    names = sorted(str(path.relative_to(folder)) for path in (folder / "backendai").rglob("*.proto"))
    found = [_Reader(file).read() for file in _compile(folder, names) if file.package.startswith(PACKAGE)]
    return sorted(found, key=lambda file: (bool(file.services), file.package))


def _compile(folder: Path, names: Sequence[str]) -> Sequence[FileDescriptorProto]:
    with TemporaryDirectory() as made:
        out = Path(made) / "all.binpb"
        includes = (f"-I{folder}", f"-I{files('grpc_tools') / '_proto'}")
        if protoc.main(("protoc", *includes, f"--descriptor_set_out={out}", "--include_source_info", *names)):
            raise SystemExit("The .proto files can't be compiled.")
        return FileDescriptorSet.FromString(out.read_bytes()).file


class _Reader:
    """Reads one file. A comment stands at the path of what it is on: field numbers of descriptor.proto and indices."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}

    def read(self) -> File:
        file = self._file
        return File(
            package=file.package,
            comment=_comment(self._comments[FileDescriptorProto.SYNTAX_FIELD_NUMBER,]),
            services=[self._service(one, (6, index)) for index, one in enumerate(file.service)],
            messages=[self._message(one, (4, index)) for index, one in enumerate(file.message_type)],
            enums=[self._enum(one, (5, index)) for index, one in enumerate(file.enum_type)],
        )

    def _text(self, *path: int) -> str:
        return self._comments[path]

    def _service(self, service: ServiceDescriptorProto, path: tuple[int, int]) -> Service:
        full_name = f"{self._file.package}.{service.name}"
        comment, errors = _split(self._text(*path))
        methods = [self._method(full_name, one, (*path, 2, index)) for index, one in enumerate(service.method)]
        return Service(service.name, full_name, comment, errors, methods)

    def _method(self, service: str, method: MethodDescriptorProto, path: tuple[int, ...]) -> Method:
        comment, errors = _split(self._text(*path))
        return Method(
            service=service,
            name=method.name,
            request=method.input_type.removeprefix("."),
            response=method.output_type.removeprefix("."),
            is_stream=method.client_streaming,
            comment=comment,
            errors=errors,
            callers=list(method.options.Extensions[common_pb2.callers]),
            idempotency=REPEATABLE[method.options.idempotency_level],
        )

    def _message(self, message: DescriptorProto, path: tuple[int, int]) -> Message:
        def field(index: int, one: FieldDescriptorProto) -> Field:
            chosen = one.HasField("oneof_index") and not one.proto3_optional
            return Field(
                name=one.name,
                type=_type_of(one),
                comment=_comment(self._text(*path, 2, index)),
                one_of=message.oneof_decl[one.oneof_index].name if chosen else "",
                type_name=one.type_name.removeprefix("."),
            )

        fields = [field(index, one) for index, one in enumerate(message.field)]
        full_name = f"{self._file.package}.{message.name}"
        return Message(message.name, full_name, _comment(self._text(*path)), fields)

    def _enum(self, enum: EnumDescriptorProto, path: tuple[int, int]) -> Enum:
        values = [Value(one.name, _comment(self._text(*path, 2, index))) for index, one in enumerate(enum.value)]
        return Enum(enum.name, _comment(self._text(*path)), values)


def _type_of(field: FieldDescriptorProto) -> str:
    kind = (
        field.type_name.rpartition(".")[2] or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    )
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    return f"optional {kind}" if field.proto3_optional else kind


def _comment(text: str) -> Comment:
    return Comment(list(_paragraphs(text)))


def _paragraphs(text: str) -> Iterator[str]:
    """Lines that belong together, joined; an item of a list ends where the next one begins."""
    together: list[str] = []
    for line in [line.strip() for line in text.splitlines()] + [""]:
        if together and (not line or line.startswith("- ") or ERRORS.match(line)):
            yield " ".join(together)
            together = []
        if line:
            together.append(line)


def _split(text: str) -> tuple[Comment, Sequence[Error]]:
    """A comment without its list of errors, and that list."""
    said: list[str] = []
    errors: list[Error] = []
    listing = False
    for paragraph in _paragraphs(text):
        listing = listing or bool(ERRORS.match(paragraph))
        if not listing:
            said.append(paragraph)
        elif found := ERROR.fullmatch(paragraph.removeprefix("- ")):
            errors.append(Error(*found.groups()))
        elif not ERRORS.match(paragraph):
            raise SystemExit(f"Not an error, CODE REASON: when: {paragraph}")
    return Comment(said), errors
