"""The window: it connects the parts with the engine, and knows what is under way."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QSettings, Qt, QTimer, Signal
from PySide6.QtGui import QCloseEvent, QKeySequence, QResizeEvent, QShortcut
from PySide6.QtWidgets import QApplication, QFileDialog, QHBoxLayout, QMainWindow, QVBoxLayout, QWidget

from . import theme
from .banner import Banner
from .composer import Composer
from .engine import Engine, Loaded, Memory, Reply, Wanted
from .icons import icon
from .panel import SettingsPanel
from .settings import Settings
from .sidebar import Sidebar
from .topbar import TopBar
from .transcript import WIDEST, Transcript

TITLE = "MiniCache Desktop"
CHATS, MODELS, PLANS = "Chats (*.chat)", "Models (*.gguf)", "Plans (*.gguf)"
NARROW = 860  # pixels, below which the panels give way to the chat
LOOK = 250  # milliseconds between two looks at how full the context is
WAIT = "Wait until this is done, or stop it first."
# what is under way: nothing, a model, a new or another chat, an answer
IDLE, LOADING, CHANGING, ANSWERING = "idle", "loading", "changing", "answering"


class MainWindow(QMainWindow):
    """The window of one chat. It is closed when `closed` is emitted: the model is freed then."""

    closed = Signal()

    def __init__(self, store: QSettings) -> None:
        super().__init__()
        self.setWindowTitle(TITLE)
        self._store, self.settings = store, Settings.read(store)
        self.engine = Engine()
        self.state, self.loaded = IDLE, False
        self._build()
        self._connect()
        self.show_theme()
        self.engine.configure(self.settings.system, self.settings.sampling())
        self._show_state()
        self.resize(1120, 780)
        if geometry := store.value("geometry"):
            self.restoreGeometry(geometry)
        self.composer.field.setFocus()

    def _build(self) -> None:
        colors = theme.LIGHT
        self.sidebar = Sidebar(self.settings.cache, self.settings.n_ctx)
        self.panel = SettingsPanel(self.settings)
        self.panel.hide()
        self.topbar, self.transcript = TopBar(), Transcript(colors)
        self.banner, self.composer = Banner(), Composer()
        bottom = QWidget()
        column = QWidget(maximumWidth=WIDEST)
        inside = QVBoxLayout(column)
        inside.setContentsMargins(4, 8, 4, 16)
        inside.addWidget(self.banner)
        inside.addWidget(self.composer)
        self._bottom = centred = QHBoxLayout(bottom)
        centred.addStretch(1)
        centred.addWidget(column, 1000)
        centred.addStretch(1)
        main = QWidget(objectName="main", minimumWidth=360)
        middle = QVBoxLayout(main)
        middle.setContentsMargins(0, 0, 0, 0)
        middle.setSpacing(0)
        middle.addWidget(self.topbar)
        middle.addWidget(self.transcript, 1)
        middle.addWidget(bottom)
        whole = QWidget()
        layout = QHBoxLayout(whole)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.sidebar)
        layout.addWidget(main, 1)
        layout.addWidget(self.panel)
        self.setCentralWidget(whole)

    def _connect(self) -> None:
        engine, sidebar = self.engine, self.sidebar
        engine.loading.connect(self._on_loading)
        engine.loaded.connect(self._on_loaded)
        engine.messages.connect(self._on_messages)
        engine.text.connect(self.transcript.add_text)
        engine.answered.connect(self._on_answered)
        engine.unanswered.connect(self._on_unanswered)
        engine.memory.connect(self._on_memory)
        engine.calibrating.connect(sidebar.calibration.show_progress)
        engine.calibrated.connect(self._on_calibrated)
        engine.note.connect(self.banner.note)
        engine.failed.connect(self._on_failed)
        engine.closed.connect(self.closed)
        sidebar.models.chosen.connect(self.load)
        sidebar.models.failed.connect(self.banner.error)
        sidebar.models.file_wanted.connect(self._choose_model)
        sidebar.cache.changed.connect(self._on_cache)
        sidebar.cache.file_wanted.connect(self._choose_plan)
        sidebar.calibration.cancelled.connect(engine.cancel_calibration)
        self.panel.changed.connect(lambda: engine.configure(self.settings.system, self.settings.sampling()))
        self.panel.theme_changed.connect(self.show_theme)
        self.composer.sent.connect(self.send)
        self.composer.stopped.connect(self.stop)
        actions = self.topbar.actions_by_name
        actions["sidebar"].triggered.connect(lambda: self._toggle(self.sidebar, self.panel))
        actions["settings"].triggered.connect(lambda: self._toggle(self.panel, self.sidebar))
        actions["new"].triggered.connect(self.new_chat)
        actions["open"].triggered.connect(self._choose_chat)
        actions["save"].triggered.connect(self._choose_target)
        actions["theme"].triggered.connect(self._turn_theme)
        QShortcut(QKeySequence(Qt.Key.Key_Escape), self, activated=self.stop)
        QApplication.styleHints().colorSchemeChanged.connect(self._on_system_theme)
        self._look = QTimer(self, interval=LOOK)
        self._look.timeout.connect(lambda: sidebar.memory.show_tokens(engine.n_tokens))

    #
    # what the user does
    #

    def load(self, model: str) -> None:
        """Loads a model by name or path, with the cache and the context that are chosen."""
        if self.state != IDLE:
            self.banner.note(WAIT)
            return
        self.settings.model = model
        self._enter(LOADING)
        settings = self.settings
        self.engine.load(Wanted(model, settings.cache, settings.n_ctx, settings.n_threads))

    def send(self, question: str) -> None:
        if not self._may_change_chat():
            return
        self.banner.hide()
        self.transcript.begin(question)
        self._enter(ANSWERING)
        self.engine.ask(question, self.settings.max_tokens)

    def stop(self) -> None:
        if self.state == ANSWERING:
            self.engine.stop()

    def new_chat(self) -> None:
        if self._may_change_chat():
            self._enter(CHANGING)
            self.engine.new_chat()
            self.composer.field.setFocus()

    def save(self, path: Path) -> None:
        self.engine.save(path)

    def open(self, path: Path) -> None:
        self._enter(CHANGING)
        self.engine.open(path)

    def show_theme(self) -> None:
        """Shows everything in the theme of the settings."""
        app = QApplication.instance()
        assert isinstance(app, QApplication)
        colors = theme.apply(app, self.settings.theme)
        for part in (self.sidebar, self.transcript, self.banner, self.composer):
            part.show_in(colors)
        # as wide as the chat, which has a scroll bar
        bar = self.transcript.verticalScrollBar().sizeHint().width()
        self._bottom.setContentsMargins(18, 0, 18 + bar, 0)
        self.topbar.show_in(colors, theme.is_dark(self.settings.theme))
        app.setWindowIcon(icon("app", colors.accent))

    def _turn_theme(self) -> None:
        self.settings.theme = "light" if theme.is_dark(self.settings.theme) else "dark"
        self.panel.show_settings()
        self.show_theme()

    def _on_system_theme(self) -> None:
        if self.settings.theme == "system":
            self.show_theme()

    def _on_cache(self, cache: str, n_ctx: int) -> None:
        self.settings.cache, self.settings.n_ctx = cache, n_ctx
        self.sidebar.cache.show_choice(cache, n_ctx)
        if self.settings.model and self.state == IDLE:
            self.load(self.settings.model)

    def _choose_model(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a model", "", MODELS)
        if path:
            self.load(path)

    def _choose_plan(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a plan", "", PLANS)
        if path:
            self._on_cache(path, self.settings.n_ctx)

    def _choose_chat(self) -> None:
        if self._may_change_chat():
            path, _ = QFileDialog.getOpenFileName(self, "Open a chat", "", CHATS)
            if path:
                self.open(Path(path))

    def _choose_target(self) -> None:
        if self._may_change_chat():
            path, _ = QFileDialog.getSaveFileName(self, "Save the chat", "my.chat", CHATS)
            if path:
                self.save(Path(path))

    def _may_change_chat(self) -> bool:
        if self.state == IDLE and self.loaded:
            return True
        self.banner.note(WAIT if self.state != IDLE else "Choose a model first.")
        return False

    #
    # what the engine says
    #

    def _on_loading(self, model: str) -> None:
        self.banner.hide()
        self.topbar.show_model(Path(model).stem if model.endswith(".gguf") else model, "Loading …")

    def _on_loaded(self, loaded: Loaded | None) -> None:
        self.loaded = loaded is not None
        self.sidebar.calibration.hide()
        self.sidebar.models.show_current(loaded.wanted.model if loaded else "")
        if loaded is None:
            self.sidebar.memory.show_memory(None)
            return
        self.topbar.show_model(loaded.name, f"KV cache: {loaded.cache}")
        # after an error, what was loaded before has been loaded again
        wanted = loaded.wanted
        self.settings.model, self.settings.cache, self.settings.n_ctx = (
            wanted.model,
            wanted.cache,
            wanted.n_ctx,
        )
        self.sidebar.cache.show_choice(wanted.cache, wanted.n_ctx)
        self._enter(IDLE)
        self.composer.field.setFocus()

    def _on_messages(self, messages: list[dict[str, str]], system: str) -> None:
        self.transcript.show_all(messages)
        self._enter(IDLE)
        if system != self.settings.system:  # of a chat that was opened
            self.settings.system = system
            self.panel.show_settings()
            self.engine.configure(system, self.settings.sampling())

    def _on_answered(self, reply: Reply) -> None:
        if reply.finish == "interrupted" and not reply.text:
            self.composer.put_back(self.transcript.take_back())
        else:
            self.transcript.end(reply.text, remark(reply))
        self._enter(IDLE)

    def _on_memory(self, memory: Memory) -> None:
        self.sidebar.memory.show_memory(memory)

    def _on_calibrated(self, reason: str) -> None:
        self.sidebar.calibration.hide()
        if reason:
            self.banner.note(reason)
        else:
            self.banner.note(
                "The plan of this model is ready. With it, a longer context fits into the same memory.",
                "Use it now",
                lambda: self.load(self.settings.model),
            )

    def _on_unanswered(self, text: str) -> None:
        self.composer.put_back(self.transcript.take_back())
        self.banner.error(text)
        self._enter(IDLE)

    def _on_failed(self, text: str) -> None:
        self.banner.error(text)
        if self.state in (LOADING, CHANGING):
            self._enter(IDLE)

    #
    # how it looks
    #

    def _enter(self, state: str) -> None:
        self.state = state
        if state == ANSWERING:
            self._look.start()
        else:
            self._look.stop()
        self._show_state()

    def _show_state(self) -> None:
        hint = "Choose a model first"
        if self.state == LOADING:
            hint = "Loading the model …"
        elif self.loaded:
            hint = "Write a message"
        self.composer.show_state(self.loaded and self.state == IDLE, self.state == ANSWERING, hint)
        for widget in (self.sidebar.cache, self.sidebar.models):
            widget.setEnabled(self.state == IDLE)
        if self.loaded:
            self.transcript.greet(
                "What would you like to know?", "Enter sends, Shift+Enter begins a new line, Esc stops."
            )
        else:
            self.topbar.show_model(
                *((TITLE, "") if self.state == IDLE else (self.topbar.title.text(), "Loading …"))
            )
            self.transcript.greet(
                "Welcome", "Choose a model on the left. It runs on this computer, and nothing leaves it."
            )

    def _toggle(self, panel: QWidget, other: QWidget) -> None:
        if panel.isHidden() and self.width() < NARROW:
            other.hide()
        panel.setVisible(panel.isHidden())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        was, now = event.oldSize().width(), event.size().width()
        if now < NARROW and (was < 0 or was >= NARROW):
            self.sidebar.hide()
            self.panel.hide()
        elif 0 <= was < NARROW <= now:
            self.sidebar.show()

    def closeEvent(self, event: QCloseEvent) -> None:
        self.settings.write(self._store)
        self._store.setValue("geometry", self.saveGeometry())
        self.hide()
        self.sidebar.models.stop()
        self.engine.close()
        super().closeEvent(event)


def remark(reply: Reply) -> str:
    """What stands below an answer."""
    parts = [f"{reply.n_tokens} tokens, {reply.tokens_per_second:.1f} a second"]
    if reply.finish == "interrupted":
        parts.append("stopped")
    elif reply.finish == "length":
        parts.append("the longest answer is reached")
    elif reply.finish == "full":
        parts.append("the context is full")
    if reply.dropped:
        parts.append(f"the oldest {reply.dropped} tokens of the chat were dropped to make room")
    return " · ".join(parts)
