"""Keeps the results of a server's run beside its events, as the demo does: metrics, summary, model and plots."""

from common.errors import RunError
from common.settings import CHECKPOINTS_FOLDER, ServerSettings
from common.telemetry.events import EVENTS_FILE, EventFile, RunFinished
from deploy.results.outputs import RunOutputs, model_facts
from server.checkpoints import CheckpointStore


class RunFolder:
    """The folder of the run that a server carries.

    Args:
        settings: of the server.

    Raises:
        RunError: (any method) the folder cannot be written.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._events = EventFile(settings.run / EVENTS_FILE)
        self._outputs = RunOutputs(settings.run)

    def bring_up_to_date(self) -> None:
        """Write what the events since the last call say; the model and the plots once the run is finished."""
        for event in self._events.read_new():
            self._outputs.add(event)
            if isinstance(event, RunFinished):
                self._finish()

    def _finish(self) -> None:
        settings = self._settings
        checkpoint = CheckpointStore(settings.run / CHECKPOINTS_FOLDER).latest(settings.run_id)
        try:
            history = self._outputs.history()
        except RunError:  # It ended before it began, for instance because it was badly configured.
            return
        if checkpoint is None or not checkpoint.step:
            self._outputs.finish(None, None)
            return
        facts = model_facts(
            history, settings.classes, settings.channels, checkpoint.progress.threshold, checkpoint.progress.thresholds
        )
        self._outputs.finish(checkpoint.model[:], facts)
