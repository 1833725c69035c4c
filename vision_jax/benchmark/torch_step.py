"""timm's model trained by torch in the way that is usual on GPUs: what our training step is compared to."""

import dataclasses
import importlib.util
import time


def find_problem() -> str:
    """Returns why torch and timm cannot be measured here; "" if they can."""
    if importlib.util.find_spec("torch") is None:
        return "not installed"
    if importlib.util.find_spec("timm") is None:
        return "timm is not installed"
    import torch

    return "" if torch.cuda.is_available() else "no GPU"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        model: timm's name of it.
        image_shape: (height, width, channels) of the images.
        fixed_size: whether the parameters depend on the images' size, so that timm must be told.
        num_classes: of the labels.
        batch_size: number of images.
        optimizer: "sgd", with momentum; AdamW for any other name.
        bfloat16: whether the model computes in it (autocast), or in float32 (TensorFloat-32 in products, as JAX does).
    """

    model: str
    image_shape: tuple[int, int, int]
    fixed_size: bool
    num_classes: int
    batch_size: int
    optimizer: str
    bfloat16: bool


class TorchStep:
    """A training step of one of timm's models, on random images and labels, which runs as often as one likes.

    The model is compiled (`torch.compile`) and in the channels-last format, parameters are float32, and the optimizer
    is torch's fused one. The images are normalized already: there is no augmentation.

    Args:
        job: what is trained.
        device: torch's, such as "cuda".

    Attributes:
        compile_seconds: to make the model, and compile it in a first step.

    Raises:
        RuntimeError: of torch, if it cannot compile or run the model.
    """

    def __init__(self, job: Job, device: str):
        import timm
        import torch

        start = time.perf_counter()
        torch.compiler.reset()  # of the models before
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        height, width, channels = job.image_shape
        options = {"img_size": (height, width)} if job.fixed_size else {}
        model = timm.create_model(job.model, num_classes=job.num_classes, in_chans=channels, **options)
        model = model.to(self._device, memory_format=torch.channels_last).train()
        if job.optimizer == "sgd":
            self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        else:
            self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        self._model = torch.compile(model)
        self._bfloat16 = job.bfloat16
        images = torch.randn(job.batch_size, channels, height, width, device=self._device)
        self._images = images.to(memory_format=torch.channels_last)
        self._labels = torch.randint(job.num_classes, (job.batch_size,), device=self._device)
        self.run(1)
        self.compile_seconds = time.perf_counter() - start

    def run(self, steps: int) -> float:
        """Does so many steps, and returns the seconds that they took, once the device is done."""
        import torch

        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            self._optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
                loss = torch.nn.functional.cross_entropy(self._model(self._images), self._labels)
            loss.backward()
            self._optimizer.step()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def peak_bytes(self) -> int | None:
        """Returns the most memory of the device that was allocated; None on a CPU."""
        import torch

        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None
