"""One line per log interval: losses, learning rate, images/s and time left."""

import time
from collections.abc import Mapping


class Progress:
    """Throughput since the last line.

    Args:
        steps: Steps of the whole run.
        done: Steps done before this start.
        batch_size: Images per step, summed over processes.
    """

    def __init__(self, steps: int, done: int, batch_size: int) -> None:
        self.steps, self.batch_size = steps, batch_size
        self.last_step, self.last_time = done, time.perf_counter()

    def report(self, step: int, values: Mapping[str, float], rate: float) -> float:
        """Print a line for `step` and return the images/s since the last one."""
        now = time.perf_counter()
        images_per_second = (step - self.last_step) * self.batch_size / (now - self.last_time)
        self.last_step, self.last_time = step, now
        left = (self.steps - step) * self.batch_size / images_per_second
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(
            f"step {step:>6}/{self.steps}  {text}  lr {rate:.2e}  "
            f"{images_per_second:.1f} images/s  {format_time(left)} left",
            flush=True,
        )
        return images_per_second


def format_time(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s or 45 s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
