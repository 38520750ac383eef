from hscc_search.cli.printing import Watch
from hscc_search.progress import Progress


def test_a_watch_passes_progress_on_and_remembers_that_there_was_some():
    reported = []
    watch = Watch(reported.append)
    assert watch.idle
    steps = [Progress("training", done, 2, f"step {done}") for done in (1, 2)]
    for step in steps:
        watch(step)
    assert not watch.idle
    assert watch.note == "step 2"
    assert reported == steps
