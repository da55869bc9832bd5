"""What stands in while no provider has a key: it says so in every answer, and translates nothing."""

from services.translate.domain import Answer, Job, Usage

UNDETERMINED = "und"


class Placeholder:
    """Gives the text back behind a label. It asks no model."""

    name, model = "placeholder", "echo"

    async def translate(self, job: Job, *, output_tokens: int) -> Answer:
        """See Provider."""
        text = f"[placeholder: not translated into {job.target}] {job.text}"
        return Answer(text, job.source or UNDETERMINED, Usage.estimate(sent=job.text, received=text))

    async def close(self) -> None:
        """Nothing to hang up."""
