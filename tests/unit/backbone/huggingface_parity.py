"""Run as a script: compares our processor with Hugging Face's Qwen3-VL processor, which needs torchvision.

A torchvision wheel made for another build of torch fails to import for want of two operators that are not used here.
Declaring them first lets it in. That must happen before anything imports torchvision, hence a process of its own.
Prints a JSON object of differences.
"""

from __future__ import annotations

import json

import numpy as np
import torch


def import_torchvision() -> torch.library.Library | None:
    """Import torchvision, with the two schemas declared if it fails without; keep what is returned alive."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401

        return library
    return None


KEPT_ALIVE = import_torchvision()

from transformers import Qwen2VLImageProcessorPil, Qwen3VLProcessor, Qwen3VLVideoProcessor  # noqa: E402
from transformers.video_utils import VideoMetadata  # noqa: E402

from twn_lightning.backbone import videos  # noqa: E402
from twn_lightning.backbone.media import ARRAY_FRAMES_PER_SECOND, Clip  # noqa: E402
from twn_lightning.backbone.pixels import PatchSettings  # noqa: E402
from twn_lightning.backbone.tiny import build_tiny  # noqa: E402
from twn_lightning.types import Item, Media  # noqa: E402

CLIPS = [(1, 64, 64), (2, 64, 96), (3, 50, 75), (4, 300, 200), (5, 20, 90), (8, 33, 64), (7, 480, 640)]
SETTINGS = PatchSettings(16, 2, 2, 4096, 65_536, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))


def compare_clips() -> dict[str, float]:
    """Our torch path against Hugging Face's, through the same entry."""
    rng = np.random.default_rng(0)
    worst, over, shapes = 0.0, 0.0, True
    for frames, height, width in CLIPS:
        pixels = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
        clip = [("item", Clip(pixels, tuple(range(frames)), 2.0))]
        assert videos.huggingface_processor() is not None
        theirs = videos.patchify_videos(clip, SETTINGS)
        cached, videos.huggingface_processor = videos.huggingface_processor, lambda: None
        ours = videos.patchify_videos(clip, SETTINGS)
        videos.huggingface_processor = cached
        shapes &= ours.bytes_PC.shape == theirs.bytes_PC.shape and torch.equal(ours.grid_thw, theirs.grid_thw)
        if shapes:
            difference = (ours.values() - theirs.values()).abs()
            worst = max(worst, difference.max().item())
            over = max(over, (difference > 1e-5).float().mean().item())
    return {"shapes_equal": shapes, "largest_difference": worst, "share_different": over}


def compare_prompts() -> dict[str, bool]:
    """Token ids and token types of text, image, video and mixed prompts, each alone."""
    _, ours = build_tiny()
    patches = ours.patches
    common = {
        "patch_size": patches.patch_size,
        "merge_size": patches.merge_size,
        "temporal_patch_size": patches.temporal_patch_size,
        "image_mean": list(patches.image_mean),
        "image_std": list(patches.image_std),
    }
    rng = np.random.default_rng(1)
    image = Media("image", rng.integers(0, 256, (40, 24, 3), dtype=np.uint8))
    video = Media("video", rng.integers(0, 256, (5, 32, 24, 3), dtype=np.uint8))
    equal = {}
    for name, media in {"text": (), "image": (image,), "video": (video,), "mixed": (video, image, image)}.items():
        item = Item(name, "Find it.", "a red cell", media)
        batch = ours([item])
        frames = 5
        theirs = Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessorPil(
                size={"shortest_edge": patches.min_pixels, "longest_edge": patches.max_pixels}, **common
            ),
            tokenizer=ours.tokenizer,
            video_processor=Qwen3VLVideoProcessor(
                size={"shortest_edge": patches.min_pixels * frames, "longest_edge": patches.max_pixels * frames},
                do_sample_frames=False,
                cap_pixels_per_frame=False,
                **common,
            ),
        )
        output = theirs(
            text=[ours.render(item)],
            images=[m.content for m in media if m.kind == "image"] or None,
            videos=[m.content for m in media if m.kind == "video"] or None,
            video_metadata=[
                VideoMetadata(total_num_frames=frames, fps=ARRAY_FRAMES_PER_SECOND, frames_indices=list(range(frames)))
                for m in media
                if m.kind == "video"
            ]
            or None,
            return_tensors="pt",
        )
        equal[name] = (
            torch.equal(output["input_ids"], batch.input_ids_BL)
            and torch.equal(output["mm_token_type_ids"].long(), batch.mm_token_type_ids_BL)
            and _same(output.get("image_grid_thw"), batch.image_grid_thw)
            and _same(output.get("video_grid_thw"), batch.video_grid_thw)
            and _close(output.get("pixel_values"), batch.pixel_values)
            and _close(output.get("pixel_values_videos"), batch.pixel_values_videos)
        )
    return equal


def _same(theirs: torch.Tensor | None, ours: torch.Tensor | None) -> bool:
    return theirs is ours is None or torch.equal(theirs, ours)


def _close(theirs: torch.Tensor | None, ours: torch.Tensor | None) -> bool:
    return theirs is ours is None or torch.allclose(theirs, ours, atol=1e-5)


if __name__ == "__main__":
    print(json.dumps({"clips": compare_clips(), "prompts": compare_prompts()}))
