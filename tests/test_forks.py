"""SQLite is not in use while a process forks, whichever threads fork, and whatever comes between."""

import threading

from per_agent.spool.forks import _Gate


def test_of_two_forks_at_once_the_first_to_be_done_lets_nobody_in():
    gate = _Gate()
    gate.before_fork()
    gate.before_fork()
    inside = threading.Event()
    thread = threading.Thread(target=lambda: (gate.enter(), inside.set()))
    thread.start()
    gate.after_fork_in_parent()
    assert not inside.wait(0.2)
    gate.after_fork_in_parent()
    assert inside.wait(30)
    thread.join()


def test_a_fork_whose_beginning_was_cut_off_shuts_nobody_out():
    gate = _Gate()
    gate.after_fork_in_parent()
    gate.enter()
    gate.leave()
