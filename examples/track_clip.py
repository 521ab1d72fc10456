"""Load an adapter into SAM 2's video predictor and track an object: python track_clip.py YAML ADAPTER FRAMES"""

import sys

from sam2_mope import build_sam2_video_predictor_moe

config, adapter, frames = sys.argv[1:]
predictor = build_sam2_video_predictor_moe(config, adapter=adapter)
state = predictor.init_state(frames)  # a folder of frames: 00000.jpg, 00001.jpg, …
predictor.add_new_points_or_box(state, frame_idx=0, obj_id=1, box=[20, 20, 80, 80])
for frame, _, logits in predictor.propagate_in_video(state):
    print(f"frame {frame}: {(logits > 0).sum().item()} pixels")
