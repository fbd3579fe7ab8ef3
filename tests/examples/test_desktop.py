"""The desktop example, driven in its window with smollm2-135m and without a screen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minicache_cpp import CancelledError, Conversation, Llama, NamedModel, load_chat
from support.windows import application, close, open_window, require_pyside, wait_until

STORY = "Tell me a long story about a lighthouse."


@pytest.fixture(scope="module")
def app(smollm2: Path) -> Any:
    require_pyside()
    return application()


@pytest.fixture(scope="module")
def loaded(app: Any, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A window with the model, which the tests share."""
    with open_window(tmp_path_factory.mktemp("window")) as window:
        window.load(str(smollm2))
        wait_until(lambda: window.state == "idle")
        assert window.loaded, window.banner.text
        yield window


@pytest.fixture
def window(loaded: Any) -> Any:
    """The shared window with an empty chat."""
    loaded.settings.max_tokens = 0
    loaded.new_chat()
    assert loaded.state == "changing"  # nothing can be sent into a chat that is about to go
    settle(loaded)
    loaded.banner.hide()
    assert loaded.transcript.messages == []
    return loaded


def settle(window: Any) -> None:
    """Waits until the engine has done all that it was asked for, and the window knows."""
    done = threading.Event()
    window.engine._queued.emit(done.set)
    wait_until(done.is_set)
    application().processEvents()


def ask(window: Any, question: str, max_tokens: int = 12) -> str:
    """Types a question, presses Enter, and returns the answer when it is complete."""
    from PySide6.QtCore import Qt
    from PySide6.QtTest import QTest

    window.settings.max_tokens = max_tokens
    window.composer.field.setPlainText(question)
    QTest.keyClick(window.composer.field, Qt.Key.Key_Return)
    assert window.state == "answering"
    wait_until(lambda: window.state == "idle")
    return str(window.transcript.messages[-1][1])


def test_an_answer_grows_token_by_token(window: Any) -> None:
    pieces: list[str] = []
    window.engine.text.connect(pieces.append)
    try:
        answer = ask(window, "Name three colours.")
    finally:
        window.engine.text.disconnect(pieces.append)
    assert len(pieces) > 5
    assert "".join(pieces) == answer
    assert window.transcript.messages == [("user", "Name three colours."), ("assistant", answer)]
    assert "12 tokens" in window.transcript.remark
    assert window.composer.field.toPlainText() == ""


def test_the_memory_is_what_the_report_says(window: Any, smollm2: Path) -> None:
    ask(window, "Hello!", 4)
    llm = window.engine._llm
    report, view = llm.kv_report(), window.sidebar.memory
    assert (view.memory.bytes, view.memory.bytes_f16) == (report.bytes, report.bytes_f16)
    assert view.memory.n_tokens == llm.n_tokens > 0
    assert view.ours.text() == f"{report.bytes / 2**20:.1f} MiB"
    assert view.f16.text() == f"{report.bytes_f16 / 2**20:.1f} MiB"
    assert view.context.text() == f"{llm.n_tokens:,} of 1,024 tokens"
    assert view.summary.text().startswith(f"{report.total_ratio:.1f} times smaller")
    assert "plan of ratio 5.0" in window.topbar.subtitle.text()


def test_stop_ends_an_answer_and_keeps_it(window: Any) -> None:
    window.send(STORY)
    wait_until(lambda: len(window.transcript.messages[-1][1]) > 20)
    window.stop()
    wait_until(lambda: window.state == "idle")
    answer = window.transcript.messages[-1][1]
    assert answer and "stopped" in window.transcript.remark
    chat = window.engine._conversation
    assert chat.messages[-1] == {"role": "assistant", "content": answer}
    assert ask(window, "Go on.", 4)


def test_stop_while_the_question_is_read_gives_it_back(window: Any) -> None:
    # one batch, so that nothing but abort() ends it before the answer begins
    question = "word " * 450
    window.send(question)
    llm = window.engine._llm
    wait_until(lambda: llm._busy)
    window.stop()
    wait_until(lambda: window.state == "idle")
    assert window.transcript.messages == []
    assert window.composer.field.toPlainText() == question
    assert window.engine._conversation.messages == []
    window.composer.field.clear()
    assert ask(window, "Hello!", 4)


def test_a_question_that_does_not_fit_is_given_back(window: Any) -> None:
    ask(window, "Hello!", 4)
    messages = window.transcript.messages
    question = "word " * 1100
    window.send(question)
    wait_until(lambda: window.state == "idle")
    assert "the context holds 1024" in window.banner.text and window.banner.kind == "error"
    assert window.transcript.messages == messages
    assert window.composer.field.toPlainText() == question
    window.composer.field.clear()
    assert ask(window, "Go on.", 4)


def test_keys_and_names(window: Any) -> None:
    """Shift+Enter begins a line, Esc stops, the chat has its usual keys, and every control says what it is."""
    from PySide6.QtCore import Qt
    from PySide6.QtTest import QTest
    from PySide6.QtWidgets import QAbstractButton, QAbstractSpinBox, QComboBox, QPlainTextEdit, QTextEdit

    field = window.composer.field
    field.setPlainText("one")
    field.moveCursor(field.textCursor().MoveOperation.End)
    QTest.keyClick(field, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    QTest.keyClicks(field, "two")
    assert field.toPlainText() == "one\ntwo"
    assert window.state == "idle"
    field.clear()
    window.send(STORY)
    window.activateWindow()
    QTest.keyClick(window, Qt.Key.Key_Escape)
    wait_until(lambda: window.state == "idle")
    keys = {name: action.shortcut().toString() for name, action in window.topbar.actions_by_name.items()}
    assert {"new": "Ctrl+N", "open": "Ctrl+O", "save": "Ctrl+S"}.items() <= keys.items()
    nameless = [
        one
        for kind in (QAbstractButton, QAbstractSpinBox, QComboBox, QPlainTextEdit, QTextEdit)
        for one in window.findChildren(kind)
        if not one.isHidden()
        and not one.accessibleName()
        and not (isinstance(one, QAbstractButton) and one.text())
    ]
    assert nameless == []


def test_a_saved_chat_goes_on_here_and_in_the_console(window: Any, smollm2: Path, tmp_path: Path) -> None:
    answer = ask(window, "Name three colours.")
    path = tmp_path / "colours.chat"
    window.save(path)
    settle(window)
    assert "colours.chat" in window.banner.text and window.banner.kind == "note"
    window.new_chat()
    settle(window)
    assert window.transcript.messages == []
    window.open(path)
    settle(window)
    assert window.transcript.messages == [("user", "Name three colours."), ("assistant", answer)]
    assert window.sidebar.memory.memory.n_tokens > 12
    further = ask(window, "And a fourth one?", 4)
    # as `minicache chat` does with /load
    settings: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    with Llama(str(smollm2), minicache="auto", **settings) as llm:
        chat = Conversation(llm, sampling=window.settings.sampling())
        load_chat(path, chat)
        assert chat.ask("And a fourth one?", 4).text == further


def test_a_bad_file_is_a_sentence_and_nothing_is_lost(window: Any, smollm2: Path, tmp_path: Path) -> None:
    ask(window, "Hello!", 4)
    messages, bad = window.transcript.messages, tmp_path / "bad.gguf"
    bad.write_text("this is no model")
    window.load(str(bad))
    wait_until(lambda: window.state == "idle" and bool(window.banner.text))
    settle(window)
    assert window.banner.kind == "error"
    assert "bad.gguf is not a GGUF file" in window.banner.text
    assert "\n" not in window.banner.text and window.banner.text.endswith(".")
    # the model from before is there again, with the chat
    assert window.loaded and window.settings.model == str(smollm2)
    assert window.transcript.messages == messages
    assert ask(window, "Go on.", 4)
    window.open(bad)
    settle(window)
    assert "bad.gguf is not a saved chat" in window.banner.text


def test_another_cache_keeps_the_chat(window: Any) -> None:
    ask(window, "Hello!", 4)
    messages, n_tokens = window.transcript.messages, window.sidebar.memory.memory.n_tokens
    for cache, subtitle in (("f16", "KV cache: f16"), ("auto", "KV cache: a plan of ratio 5.0")):
        window._on_cache(cache, 1024)
        wait_until(lambda: window.state == "idle" and window.sidebar.memory.memory is not None)
        assert window.topbar.subtitle.text() == subtitle
        if cache == "f16":
            memory = window.sidebar.memory.memory
            assert memory.bytes == memory.bytes_f16
            assert window.sidebar.memory.summary.text() == "Nothing is saved with this cache."
    assert window.transcript.messages == messages
    assert [one["role"] for one in window.engine._conversation.messages] == ["user", "assistant"]
    assert window.sidebar.memory.memory.n_tokens == 0
    ask(window, "Go on.", 4)
    assert window.sidebar.memory.memory.n_tokens > n_tokens + 4  # all of it was read again


def test_themes_can_be_switched_and_are_remembered(window: Any) -> None:
    from PySide6.QtGui import QPalette

    def ground() -> int:
        return int(application().palette().color(QPalette.ColorRole.Window).lightness())

    ask(window, "Hello!", 4)
    for choice in ("dark", "light"):
        window.panel.theme.setCurrentIndex(window.panel.theme.findData(choice))
        window.panel.theme.activated.emit(0)
        assert window.settings.theme == choice
        assert (ground() < 100) == (choice == "dark")
        picture = window.grab().toImage()
        corner = picture.pixelColor(5, picture.height() - 5)
        assert (corner.lightness() < 100) == (choice == "dark")


def test_settings_are_used_and_remembered(app: Any, tmp_path: Path) -> None:
    from PySide6.QtCore import QSettings

    from minicache_desktop.settings import Settings

    with open_window(tmp_path) as window:
        window.panel.system.setPlainText("You are kind.")
        window.panel.temperature.setValue(0.3)
        window.panel.seed.setValue(7)
        wait_until(lambda: window.settings.system == "You are kind.")
    store = QSettings(str(tmp_path / "settings.ini"), QSettings.Format.IniFormat)
    found = Settings.read(store)
    assert (found.system, found.temperature, found.seed) == ("You are kind.", 0.3, 7)
    assert (found.sampling().temp, found.sampling().seed) == (0.3, 7)
    store.setValue("n_ctx", "many")
    assert Settings.read(store).n_ctx == Settings().n_ctx


def test_the_system_message_and_the_sampling_reach_the_chat(window: Any, tmp_path: Path) -> None:
    said = [{"role": "system", "content": "You are kind."}]
    try:
        window.panel.system.setPlainText("You are kind. ")
        window.panel.temperature.setValue(0.3)
        wait_until(lambda: window.engine._conversation.messages == said)
        assert window.engine._conversation.sampling.temp == 0.3
        assert window.panel.system.toPlainText() == "You are kind. "  # as it is typed
        ask(window, "Hello!", 4)
        # from the next new chat on
        window.panel.system.clear()
        wait_until(lambda: window.settings.system == "")
        settle(window)
        assert window.engine._conversation.messages[:1] == said
        window.save(tmp_path / "kind.chat")
        window.new_chat()
        settle(window)
        assert window.engine._conversation.messages == []
        window.open(tmp_path / "kind.chat")
        settle(window)
        assert window.panel.system.toPlainText() == "You are kind."
        assert len(window.transcript.messages) == 2
    finally:
        window.panel.system.clear()
        window.panel.temperature.setValue(0.0)
        wait_until(lambda: window.settings.system == "")
        settle(window)


def test_closing_ends_an_answer_and_frees_the_model(app: Any, smollm2: Path, tmp_path: Path) -> None:
    with open_window(tmp_path) as window:
        window.load(str(smollm2))
        wait_until(lambda: window.state == "idle")
        window.send(STORY)
        wait_until(lambda: len(window.transcript.messages[-1][1]) > 0)
        llm = window.engine._llm
        close(window)
        assert window.engine._llm is None
        assert type(llm._ctx).__name__ == "Closed"


def test_a_model_is_fetched_when_its_licence_is_agreed_to(
    app: Any, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PySide6.QtWidgets import QMessageBox

    from minicache_desktop import fetcher, models

    row = NamedModel("tiny", "a model of a test", 2**20, 1024, "CC0-1.0", "It is in the public domain.", None)
    table, may_end = [row], threading.Event()

    def fetch(name: str, on_progress: Callable[[float, str, str], object]) -> Path:
        while not may_end.wait(0.01):
            if on_progress(0.5, "download", "0.5 of 1 MiB") is False:
                raise CancelledError("cancelled")
        table[0] = replace(row, path=smollm2)
        return smollm2

    def press_fetch() -> None:
        tiny.button.click()
        (box,) = window.findChildren(QMessageBox)
        assert "CC0-1.0" in box.informativeText() and "public domain" in box.informativeText()
        next(one for one in box.buttons() if one.text() == "Fetch").click()
        wait_until(lambda: tiny.detail.text() == "0.5 of 1 MiB")

    monkeypatch.setattr(models, "list_models", lambda: list(table))
    monkeypatch.setattr(fetcher, "fetch_model", fetch)
    with open_window(tmp_path) as window:
        tiny = window.sidebar.models.rows["tiny"]
        assert (tiny.button.text(), tiny.detail.text()) == ("Fetch", "1.0 MiB · CC0-1.0")
        press_fetch()
        assert tiny.button.text() == "Cancel" and tiny.progress.value() == 500
        tiny.button.click()
        wait_until(lambda: tiny.button.text() == "Fetch")
        assert window.banner.text == ""
        press_fetch()
        # the name means a file only in the user's cache directory
        wanted: list[str] = []
        window.sidebar.models.chosen.disconnect()
        window.sidebar.models.chosen.connect(wanted.append)
        may_end.set()
        wait_until(lambda: wanted == ["tiny"])
        assert tiny.button.text() == "Use"


def test_a_model_without_a_plan_gets_one_while_it_is_idle(app: Any, model: Path, tmp_path: Path) -> None:
    with open_window(tmp_path, n_ctx=512) as window:
        window.load(str(model))
        wait_until(lambda: window.state == "idle")
        assert window.topbar.subtitle.text() == "KV cache: q8_0"
        assert "a plan is made while the model is idle" in window.banner.text
        wait_until(lambda: not window.sidebar.calibration.isHidden())
        wait_until(lambda: "plan of this model is ready" in window.banner.text)
        assert window.sidebar.calibration.isHidden()
        window.banner.action.click()
        wait_until(lambda: "plan of ratio" in window.topbar.subtitle.text())


def test_an_answer_loads_nothing_and_opens_pages_of_the_web_alone(
    app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PySide6.QtCore import QUrl
    from PySide6.QtGui import QColor, QImage

    from minicache_desktop import texts, theme

    picture = tmp_path / "red.png"
    image = QImage(8, 8, QImage.Format.Format_RGB32)
    image.fill(QColor("red"))
    image.save(str(picture))
    box = texts.TextBox("Answer")
    box.show_markdown(f"![red]({picture.as_uri()}) <b>bold</b>", theme.LIGHT)
    assert "<b>bold</b>" in box.toPlainText()
    box.resize(200, 60)
    shown = box.grab().toImage()
    red = QColor("red").rgb()
    assert all(shown.pixel(x, y) != red for x in range(shown.width()) for y in range(shown.height()))
    opened: list[str] = []
    monkeypatch.setattr(texts.QDesktopServices, "openUrl", lambda url: opened.append(url.toString()))
    for address in ("https://example.org/", picture.as_uri(), "mailto:a@example.org"):
        box.anchorClicked.emit(QUrl(address))
    assert opened == ["https://example.org/"]


def test_answers_are_cut_into_prose_and_code(app: Any) -> None:
    from minicache_desktop.parts import Part, split

    assert split("Look:\n\n```python\nx = 1\n```\nDone `so`.") == [
        Part("Look:"),
        Part("x = 1", True, "python"),
        Part("Done `so`."),
    ]
    # while it grows
    assert split("Look:\n```py\nx =") == [Part("Look:"), Part("x =", True, "py")]
    # in a list, and with fences inside
    assert split("1. Do\n\n   ```\n   x\n   ```") == [Part("1. Do"), Part("x", True, "")]
    assert split("````md\n```\nx\n```\n````") == [Part("```\nx\n```", True, "md")]
    assert split("") == []
