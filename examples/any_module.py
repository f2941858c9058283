"""An adapter on a network that is no language model: attach, train, save, attach again, merge by hand.

python examples/any_module.py
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import inlay


class Classifier(nn.Module):
    """A small convolutional network, as one might have trained it on something else."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.hidden = nn.Linear(8, 16)
        self.answer = nn.Linear(16, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.features(images))).amax((2, 3))
        return self.answer(torch.relu(self.hidden(h)))


def rows(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright line in it, upright or flat."""
    images, upright = torch.randn(number, 1, 8, 8), torch.rand(number) < 0.5
    for image, is_upright in zip(images, upright, strict=True):
        line = image[0, :, 3] if is_upright else image[0, 3]
        line += 3
    return images, upright.long()


torch.manual_seed(0)
model = Classifier()
images, labels = rows(256)
before = model(images)

# the network is frozen; a low-rank change of its maps is trained, and the norm as a whole
attached = inlay.attach(model, inlay.Lora(r=2, target_modules="features,hidden,answer", modules_to_save="norm"))
optimizer = torch.optim.AdamW(attached.parameters(), lr=2e-2)
for _ in range(200):
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
new_images, new_labels = rows(256)
accuracy = (model(new_images).argmax(1) == new_labels).float().mean().item()
print(f"{attached['default'].num_weights} weights trained, {100 * accuracy:.0f} % of new images right")

# rows of one batch may take it or leave it
with attached.using(["default", None]):
    mixed = model(images[:2])
assert torch.allclose(mixed[1], before[1], atol=1e-6)

# saved as PEFT has it, attached to a fresh copy
with tempfile.TemporaryDirectory() as folder:
    attached.save("default", Path(folder), {})
    attached.active = "default"
    wanted = model(new_images)
    torch.manual_seed(0)
    again = inlay.attach(Classifier(), folder)
    assert torch.allclose(again.module(new_images), wanted, atol=1e-6)
    print("saved, attached to a fresh copy: the same answers")
