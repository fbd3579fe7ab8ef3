"""scripts/build_wheels.py: what it makes of the trials' results. Nothing is built or installed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import build_wheels
from build_wheels import Trial, WheelError

HERE = Trial(
    "here",
    {
        "tokens": [1, 2],
        "logits": [0.0, 1.0, 2.0],
        "bytes": 100,
        "merged": 4,
        "kernels": "libggml-cpu-haswell.so",
        "seconds": 1.0,
    },
)


def changed(**values: Any) -> Trial:
    return Trial("there", {**HERE.result, **values})


def test_equal_results_pass(capsys: pytest.CaptureFixture[str]) -> None:
    build_wheels.require(HERE, HERE, "haswell")
    build_wheels.require(changed(logits=[0.0, 1.0, 2.001], kernels="libggml-cpu-sse42.so"), HERE, "sse42")
    assert "there: libggml-cpu-sse42.so, 4 merged layers, logits within 1.2e-03" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tried", "message"),
    [
        (changed(tokens=[1, 3]), r"there: tokens are \[1, 3\], not \[1, 2\]"),
        (changed(merged=0), "merged are 0, not 4"),
        (changed(logits=[0.0, 1.0, 2.2]), "the logits differ by more than"),
        (changed(kernels="libggml-cpu-haswell.so"), "ggml took libggml-cpu-haswell.so, not the kernels for x64"),
        (Trial("there", error="Illegal instruction"), "there: Illegal instruction"),
    ],
)  # fmt: skip
def test_other_results_fail(tried: Trial, message: str) -> None:
    with pytest.raises(WheelError, match=message):
        build_wheels.require(tried, HERE, "x64" if "x64" in message else "")


@pytest.mark.parametrize(
    ("steps", "alike"),
    [
        ([[5, 6, 0.2], [7, 8, 0.09], [9, 4, 1.0]], True),
        # after a tie the answers go their own ways
        ([[5, 6, 0.2], [8, 7, 0.01], [1, 2, 3.0]], True),
        ([[6, 5, 0.2], [7, 8, 0.09], [9, 4, 1.0]], False),
        ([[5, 6, 0.2], [3, 7, 0.01], [9, 4, 1.0]], False),
    ],
    ids=["the same", "other after a tie", "other without a tie", "a token that was not next"],
)
def test_answers_may_part_at_a_tie_only(steps: list[list[float]], alike: bool) -> None:
    expected = changed(chat={"text": "Hello", "steps": [[5, 6, 0.2], [7, 8, 0.09], [9, 4, 1.0]]})
    tried = changed(chat={"text": "Hi", "steps": steps})
    if alike:
        build_wheels.require(tried, expected)
        return
    with pytest.raises(WheelError, match="there: the chat answered 'Hi', not 'Hello'"):
        build_wheels.require(tried, expected)


def test_a_trial_is_silent_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it prints on stderr counts as a failure, and the checkout's package is not on its path."""
    monkeypatch.setenv("PYTHONPATH", "checkout")
    program = "import json, os; print(json.dumps(os.environ.get('PYTHONPATH')))"
    assert build_wheels.trial("x", [sys.executable, "-c", program]).result is None
    loud = "import sys; print(json.dumps({})) if 0 else print('first\\nloaded a library', file=sys.stderr)"
    assert build_wheels.trial("x", [sys.executable, "-c", loud]).error == "loaded a library"
    emulated = "import sys; print('qemu-x86_64: warning: no x2apic', file=sys.stderr); print('{}')"
    assert build_wheels.trial("x", [sys.executable, "-c", emulated]) == Trial("x", {})
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    assert build_wheels.trial("x", [sys.executable, "-c", killed]).error == "it ended with status -4"


def test_the_newest_wheel_of_the_architecture_is_taken(tmp_path: Path) -> None:
    for age, name in enumerate(("1-py3-none-manylinux_2_35_x86_64", "2-py3-none-manylinux_2_35_aarch64")):
        (tmp_path / f"minicache_cpp-{name}.whl").touch()
        os.utime(tmp_path / f"minicache_cpp-{name}.whl", (age, age))
    assert "2_35_x86_64" in build_wheels.newest_wheel(tmp_path, "x86_64").name
    with pytest.raises(WheelError, match="holds no wheel of minicache-cpp for x86_64") as caught:
        build_wheels.newest_wheel(tmp_path / "none", "x86_64")
    assert caught.value.status == build_wheels.BAD_INPUT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="builds wheels on Linux only")
def test_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(build_wheels.shutil, "which", lambda name: None)
    monkeypatch.setattr(build_wheels.platform, "machine", lambda: "x86_64")
    for arguments, message in (
        (["--arch", "x86_64", "--emulate"], "qemu-x86_64 was not found"),
        (["--arch", "aarch64", "--emulate"], "x86_64 only"),
        (["--arch", "aarch64"], "apt-get install g++-aarch64-linux-gnu"),
    ):
        with pytest.raises(SystemExit) as caught:
            build_wheels.parse(["dist", *arguments])
        assert caught.value.code == build_wheels.BAD_INPUT
        assert message in capsys.readouterr().err


def test_the_check_runs_here(tmp_path: Path) -> None:
    """With the libraries of the tests: coded layers, logits for each token, and a file of kernels."""
    model, plan = tmp_path / "random.gguf", tmp_path / "random.plan.gguf"
    for script, *arguments in (
        ("random_model.py", "tiny", "-o", str(model)),
        ("random_plan.py", str(model), "--ratio", "5", "-o", str(plan)),
    ):
        build_wheels.subprocess.run(
            [sys.executable, str(build_wheels.SCRIPTS / script), *arguments], check=True
        )
    command = [sys.executable, str(build_wheels.SCRIPTS / "wheel_check.py"), str(model), str(plan)]
    done = build_wheels.subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert done.stderr == ""
    assert (len(result["logits"]), result["merged"]) == (512, 4)
    assert "ggml-cpu" in result["kernels"]


def test_arm_kernels_follow_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-compiled, or built on the machine itself."""
    monkeypatch.setattr(build_wheels.platform, "machine", lambda: "x86_64")
    assert build_wheels.kernel_options("x86_64") == ["-DGGML_CPU_ALL_VARIANTS=ON"]
    asked = []
    for knows, option in ((True, "-DGGML_CPU_ALL_VARIANTS=ON"), (False, "-DGGML_CPU_ARM_ARCH=armv8-a")):
        monkeypatch.setattr(
            build_wheels, "compiles", lambda *words, knows=knows: asked.append(words) or knows
        )
        assert build_wheels.kernel_options("aarch64") == [option]
    assert asked == [("aarch64-linux-gnu-gcc", "-march=armv9.2-a+sme")] * 2
    assert build_wheels.cross_options("x86_64") == []
    assert "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++" in build_wheels.cross_options("aarch64")


def test_the_licence_of_libgomp_is_found_or_missed(tmp_path: Path) -> None:
    (tmp_path / "exception").write_text("you may")
    (tmp_path / "licence").write_text("you must")
    one, other = str(tmp_path / "exception"), str(tmp_path / "licence")
    assert build_wheels.gcc_licence([("/nowhere", one), (one, other)]) == "you may\nyou must"
    with pytest.raises(WheelError, match="was not found; it was looked for in /nowhere"):
        build_wheels.gcc_licence([("/nowhere", one)])
