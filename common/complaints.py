"""One sentence from pydantic's complaints."""

from pydantic import ValidationError


def complaint(error: ValidationError, whole: str) -> str:
    """Return the first complaint as ``key: what must hold``.

    What was got is left out: it can be a secret, or a patient's.

    Args:
        error: of a model.
        whole: what to call that which was read, where no key of it is at fault.

    >>> from pydantic import BaseModel
    >>> class Port(BaseModel):
    ...     number: int
    >>> try:
    ...     Port.model_validate({"number": "high"})
    ... except ValidationError as error:
    ...     complaint(error, "the port")
    'number: Input should be a valid integer, unable to parse string as an integer'
    """
    finding = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in finding['loc']) or whole}: {finding['msg']}"
