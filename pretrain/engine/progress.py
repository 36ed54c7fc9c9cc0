"""One line per log interval: losses, learning rate, images/s, MFU and time left."""

import time
from collections.abc import Mapping

IMAGES_PER_SECOND, TFLOPS_PER_SECOND, MFU = "images_per_second", "tflops_per_second", "mfu"
"""Names in `metrics.jsonl` of what depends on the clock."""


class Progress:
    """Throughput since the last line.

    Args:
        steps: Steps of the whole run.
        done: Steps done before this start.
        batch_size: Images per step, summed over processes.
        flops: Floating-point operations of training on one image; 0 if they are not counted.
        peak: FLOP/s of all devices together.
    """

    def __init__(
        self, steps: int, done: int, batch_size: int, flops: float = 0.0, peak: float = 0.0
    ) -> None:
        self.steps, self.batch_size, self.flops, self.peak = steps, batch_size, flops, peak
        self.last_step, self.last_time = done, time.perf_counter()

    def report(self, step: int, values: Mapping[str, float], rate: float) -> dict[str, float]:
        """Print a line for `step` and return the rates since the last one.

        MFU, model FLOPs utilisation, is the share of the peak; it needs counted operations.
        """
        now = time.perf_counter()
        images_per_second = (step - self.last_step) * self.batch_size / (now - self.last_time)
        self.last_step, self.last_time = step, now
        rates = {IMAGES_PER_SECOND: images_per_second}
        speed = f"{images_per_second:.1f} images/s"
        if self.flops and self.peak:
            reached = images_per_second * self.flops
            rates |= {TFLOPS_PER_SECOND: reached / 1e12, MFU: reached / self.peak}
            speed += f"  MFU {reached / self.peak:.1%}"
        left = (self.steps - step) * self.batch_size / images_per_second
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(
            f"step {step:>6}/{self.steps}  {text}  lr {rate:.2e}  "
            f"{speed}  {format_time(left)} left",
            flush=True,
        )
        return rates


def format_time(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s or 45 s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
