"""Options of the synthetic camera that blurs photographs."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class BlurOptions:
    """What the synthetic camera does. Lengths are pixels of the training crop, shares 0 to 1.

    Args:
        max_length: Longest camera path.
        length_power: Path length is max_length·u^power, u uniform: larger values mean more light
            blur.
        calm_share: Paths that turn and change their speed little, as most do while a video's
            shutter is open; the others are wilder.
        light_share: Pairs whose paths are no longer than `light_length`.
        light_length: See `light_share`.
        sharp_share: Pairs without blur, which must come back as they are, noise and coding
            included: their sharp picture is their blurred one.
        frames_share: Exposures made of 7 to 13 shorter ones with gaps, as averaged frames are.
        steps: Points of a path.
        varying_share: Pairs whose path depends on the place, by roll, tilt, zoom and depth.
        roll_degrees: Roll during the exposure, at most.
        tilt_degrees: Tilt during the exposure, at most.
        zoom: Relative zoom during the exposure, at most.
        depth: By how much a path is longer at the edge of the crop than at its middle, at most.
        anchors: Transfer functions along each side where the path depends on the place by much; 2
            where by little.
        layer_share: Pairs with moving layers.
        layers: Layers of such a pair, at most.
        at_rest_share: Of these pairs, those whose camera, or whose layer, is at rest.
        coded_share: Pairs averaged in coded values, as GoPro's `blur` folders are; the others have
            a response curve (see `camera_effects.Response`; sRGB is gamma 2.4, offset 0.055).
        gammas: Range of the curves' gammas.
        max_offset: Largest offset of the curves.
        contrasts: Range of the tone curve that lies over half of the curves.
        highlight_share: Pairs whose whites exceed white, and saturate after averaging.
        highlight: How many times brighter than white, at most.
        lights_share: Pairs with points of light.
        noise_share: Pairs with noise, half of them as coarse as demosaicing leaves it.
        noise: Standard deviation in coded values at mid gray, at most.
        smear_share: Pairs whose fine texture is leveled.
        smear: Strength of the leveling, at most.
        sharpen_share: Pairs of a camera that sharpens, before averaging or after. The sharp picture
            is sharpened alike.
        sharpen: Amount of the sharpening, at most.
        jpeg_share: Pairs that are compressed as JPEG.
        jpeg_quality: Range of the quality.
        h264_share: Pairs that are compressed as H.264.
        h264_crf: Range of the rate factor.
    """

    max_length: float = 40.0
    length_power: float = 1.3
    calm_share: float = 0.7
    light_share: float = 0.1
    light_length: float = 4.0
    sharp_share: float = 0.12
    frames_share: float = 0.3
    steps: int = 64
    varying_share: float = 0.5
    roll_degrees: float = 1.2
    tilt_degrees: float = 0.4
    zoom: float = 0.02
    depth: float = 0.5
    anchors: int = 3
    layer_share: float = 0.4
    layers: int = 2
    at_rest_share: float = 0.3
    coded_share: float = 0.4
    gammas: tuple[float, float] = (1.8, 2.6)
    max_offset: float = 0.1
    contrasts: tuple[float, float] = (-0.2, 0.6)
    highlight_share: float = 0.2
    highlight: float = 5.0
    lights_share: float = 0.06
    noise_share: float = 0.6
    noise: float = 0.015
    smear_share: float = 0.08
    smear: float = 0.02
    sharpen_share: float = 0.4
    sharpen: float = 0.9
    jpeg_share: float = 0.35
    jpeg_quality: tuple[int, int] = (60, 98)
    h264_share: float = 0.1
    h264_crf: tuple[float, float] = (16.0, 30.0)


#: Nothing but motion: no noise, no curve, no coding, and no sharp pairs.
PURE = BlurOptions(
    light_share=0,
    sharp_share=0,
    frames_share=0,
    varying_share=0,
    layer_share=0,
    coded_share=1,
    highlight_share=0,
    lights_share=0,
    noise_share=0,
    smear_share=0,
    sharpen_share=0,
    jpeg_share=0,
    h264_share=0,
)


def lightly(options: BlurOptions) -> BlurOptions:
    """Return the same motion before a better camera, in a better file: what a network learns first.

    Much noise and coding hide a blur of a few pixels, and make all pictures equally bad.
    """
    return replace(
        options,
        noise_share=min(options.noise_share, 0.5),
        noise=min(options.noise, 0.008),
        smear_share=0.0,
        sharpen_share=min(options.sharpen_share, 0.25),
        sharpen=min(options.sharpen, 0.6),
        jpeg_share=min(options.jpeg_share, 0.15),
        jpeg_quality=(max(options.jpeg_quality[0], 80), max(options.jpeg_quality[1], 80)),
        h264_share=0.0,
    )
