"""What a front end has, in a file that outlives the process that noted it."""

import signal
import subprocess
import sys
from pathlib import Path

from gateway.services.positions import Note, Positions

NOTING = """
import itertools, sys
from pathlib import Path
from gateway.services.positions import Note, Positions
position = Positions(Path(sys.argv[1])).of("s", "local")
print("noting", flush=True)
for n in itertools.count():
    position.noting(Note(f"heard-{n}", f"replied-{n}"))()
"""


def test_a_kill_at_any_moment_leaves_a_whole_note(tmp_path: Path) -> None:
    path = tmp_path / "front_ends" / "uid"
    for _ in range(5):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", NOTING, str(path)], stdout=subprocess.PIPE)
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGKILL)

        ((session_id, caller, position),) = Positions(path).left()

        heard, replied = position.noted
        assert (session_id, caller) == ("s", "local")
        assert heard.replace("heard", "") == replied.replace("replied", "")


def test_many_have_a_place_of_their_own_and_those_forgotten_are_gone(tmp_path: Path) -> None:
    positions = Positions(tmp_path / "uid")
    made = {f"ä{n}": positions.of(f"ä{n}", "local") for n in range(50)}
    for name, position in made.items():
        assert position is not None
        position.noting(Note(f"heard {name}", "x" * 500))()
    for name in list(made)[::2]:
        position = made.pop(name)
        assert position is not None
        position.forget()

    left = {session_id: position.noted for session_id, _, position in Positions(tmp_path / "uid").left()}

    assert left == {name: Note(f"heard {name}", "x" * 141) for name in made}


def test_what_has_no_room_or_no_file_is_not_noted_and_harms_nobody(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()

    assert Positions(blocked / "uid").of("s", "local") is None
    assert Positions(tmp_path / "uid").of("s" * 500, "local") is None
    assert Positions(tmp_path / "none").left() == []


def test_a_note_after_all_were_removed_goes_nowhere(tmp_path: Path) -> None:
    positions = Positions(tmp_path / "uid")
    former = positions.of("former", "local")
    assert former is not None
    late = former.noting(Note("late", ""))
    positions.remove()
    new = positions.of("new", "local")

    late()

    assert new is not None
    assert new.noted == Note("", "")
