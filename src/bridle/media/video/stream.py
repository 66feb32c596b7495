"""A film as FFmpeg (PyAV) reads it: its frames and the times they are shown at, from the start or from a key frame on.

The time of a frame is its presentation stamp, counted from the first frame that the decoder gives. AVI has stamps for
decoding only, which say as much once the frames are in order. Bare streams (.h264, .m2v, .mjpeg) have none: their frames
are counted at the average rate, and always decoded from the start.

In MPEG program streams that put several small pictures into one pack, frames may be off by one or two.

Before a clip, and between its frames, the decoder leaves out frames to which no other refers: 15 to 30 % of the time with
x264's usual settings. Whether that was right is checked against the time stamps, and undone if not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal

from bridle.media.reading import Unreadable, Wanted, check_pixels

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Way = Literal["seek", "walk", "read"]
"""How to get at a clip: jump to the key frame before it, read up to there and decode from there on, or decode all of it."""

Packets = Iterator["Packet[VideoStream]"]
Shown = tuple[float, "VideoFrame"]
"""A frame and when it is first shown, in seconds from the first frame of the film."""

_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS of libavformat/avformat.h
_ESTIMATED = ("mpeg", "mpegts")  # their duration is guessed from the last stamps, and short by some frames
_SPARSE = ("mpeg",)  # few packets are stamped, and after a jump the others are off by some frames
_TAIL_SECONDS = 3.0
_MAX_RATE_HZ = 1000.0  # from here on it is rather the unit of the time stamps
_UNKNOWN_RATE_HZ = 25.0
_DROPPABLE = ("h264", "mpeg1video", "mpeg2video", "mpeg4")  # no frame refers to those that FFmpeg drops as "NONREF"
_NEAR_SECONDS = 0.25  # to decode up to here costs less than to seek
_STEPS_BACK_SECONDS = (1.0, 4.0, 16.0, 64.0, 256.0)
_DELAY_FRAMES = 4  # by which decoding may run ahead of showing
_MAX_GROUP_BYTES = 1 << 26  # of packets held while walking
_BARREN_PACKETS = 2000  # in a row without a frame: noise, or encrypted
_LENIENCE = 0.05  # part of a frame by which a time may come before its frame, for the rounding of rates and times


class Lost(Exception):
    """A short cut, "seek", "walk" or "skip", may not have led to the frames asked for; a longer way will tell."""

    def __init__(self, short_cut: Literal["seek", "walk", "skip"]) -> None:
        super().__init__(short_cut)
        self.short_cut = short_cut


class Film:
    """An opened film. Its frames are read in one go.

    Attributes:
        rate_hz: average frame rate, or FFmpeg's guess; 25 where there is none.
        states_rate: whether it is the average by the header.
        num_frames: as the header states, 0 when it does not.
        stored_size: (width, height) in pixels as the header states, 0 when it does not.
        pixel_aspect: width over height of a pixel; 1 where it is not known or makes no sense.
        codec: FFmpeg's name of the coding.
        format: FFmpeg's first name of the file format.

    Args:
        container: the file, newly opened.
        track: its video track.
        check: asked between packets; what it raises ends the reading.
        max_pixels: most pixels of a frame; None for no limit.
        skip: let the decoder leave out frames that are not wanted and to which no other refers.

    Raises:
        Unreadable: frames too large, or no decoder.
    """

    def __init__(
        self, container: InputContainer, track: VideoStream, check: Callable[[], None], max_pixels: int | None, skip: bool
    ) -> None:
        import av

        context = track.codec_context
        if context is None:
            raise Unreadable("no decoder for its codec")
        check_pixels(context.width, context.height, max_pixels)
        context.thread_count = 1
        if max_pixels is not None:  # for frames that grow; FFmpeg counts padding in
            context.options = {"max_pixels": str(2 * max_pixels + (1 << 16))}
        try:
            context.open()
        except av.error.FFmpegError as error:
            raise Unreadable("truncated or damaged header") from error
        self._container, self._track, self._context, self._check = container, track, context, check
        self._unit = float(track.time_base or 0) or 1e-6
        rates = [float(rate) for rate in (track.average_rate, track.guessed_rate, track.base_rate) if rate and rate > 0]
        self.rate_hz = next((rate for rate in rates if rate < _MAX_RATE_HZ), _UNKNOWN_RATE_HZ)
        self.states_rate = bool(track.average_rate)
        self._gap = 1 / self.rate_hz
        units = self._gap / self._unit
        self._blur = 0.0 if abs(units - round(units)) < 1e-6 else self._unit  # of time stamps that are rounded
        self.num_frames, self.stored_size = max(0, track.frames), (context.width, context.height)
        aspect = float(track.sample_aspect_ratio or 1)
        self.pixel_aspect = aspect if 1 / 8 <= aspect <= 8 else 1.0
        self.codec, self.format = str(context.codec.canonical_name), str(container.format.name).split(",", maxsplit=1)[0]
        self._is_counted = bool(container.format.flags & _NO_TIMESTAMPS)
        self._uses_dts = self.format == "avi"
        self._is_droppable = skip and context.name in _DROPPABLE and not self._uses_dts
        self._is_intra_only = skip and context.codec.intra_only
        self._origin: float | None = None
        self._now = -self._gap
        self._passed: list[tuple[float, float]] = []
        self._skips = False

    def seconds_shown(self, frame: VideoFrame) -> float:
        """How long the last frame of the film is shown."""
        return float((frame.duration or 0) * self._unit) or self._gap

    def lenience(self, gap: float) -> float:
        """How much earlier, in seconds, a time may be that still gets a frame, ``gap`` after the frame before."""
        return max(_LENIENCE * min(gap, self._gap), self._blur if 4 * self._blur <= gap else 0.0)

    def confirm(self, shown: float, wanted: float) -> None:
        """Raises :class:`Lost` if a frame between those times was passed over, so that ``shown`` may be the wrong one."""
        self._passed = [(time, end) for time, end in self._passed if time > shown]
        if any(time <= wanted + self._gap / 4 for time, _ in self._passed):
            raise Lost("skip")

    def confirm_end(self, shown: float, wanted: float) -> None:
        """Raises :class:`Lost` if a frame after ``shown``, the last one, was passed over and is still there at ``wanted``."""
        if any(shown < time and wanted < end for time, end in self._passed):
            raise Lost("skip")

    def frames(self, wanted: Wanted, way: Way) -> Iterator[Shown]:
        """The frames from the first one wanted on, and some before it. Other frames that are not wanted may be missing.

        Raises:
            Lost: this way does not lead there.
            Unreadable: there is no frame at all.
        """
        packets = self._packets()
        opening = self._opening(packets)
        if not opening:
            raise Unreadable("no picture can be decoded")
        if way == "read" or self._is_counted or wanted.start <= _NEAR_SECONDS or self._origin is None:
            return chain(opening, self._decoded(packets, wanted))
        seeks = way == "seek" and self.format not in _SPARSE
        found = self._sought(wanted) if seeks else self._walked(opening, packets, wanted)
        if found is None:
            raise Lost("seek" if seeks else "walk")
        return found

    def first_frame(self) -> VideoFrame | None:
        """The first frame; None where there is none."""
        opening = self._opening(self._packets())
        return opening[0][1] if opening else None

    def stated_seconds(self) -> float:
        """Duration by the header, 0 where it does not tell."""
        if self._is_counted or self.format in _ESTIMATED:
            return 0.0
        return self._header_seconds()

    def read_seconds(self) -> tuple[float, int]:
        """Duration by the packets, and their number, 0 where only the last ones are read. To be called before all else."""
        if self._is_counted:
            num_packets = sum(1 for _ in self._packets())
            return self._gap * num_packets, num_packets
        start, about = self._track.start_time, self._header_seconds()
        if self.format == "mpegts" and start is not None and about > _TAIL_SECONDS:
            last = self._stamps()[1] if self._jump(start + int((about - _TAIL_SECONDS) / self._unit)) else -math.inf
            if last > -math.inf:
                return max(about, last - start * self._unit), 0
            self._jump(start)
        first, last, num_packets = self._stamps()
        return max(last - first, 0.0), num_packets

    def _header_seconds(self) -> float:
        start = (self._track.start_time or 0) * self._unit
        if self._track.duration:
            return float(self._track.duration * self._unit)
        try:  # Matroska's tag is of the track, its header of all tracks
            hours, minutes, seconds = str(self._track.metadata.get("DURATION", "")).split(":")
            return float(hours) * 3600 + float(minutes) * 60 + float(seconds) - start
        except ValueError:
            return self._container.duration / 1e6 - start if self._container.duration else 0.0

    def _stamps(self) -> tuple[float, float, int]:
        """The earliest start and the latest end of the packets to come, in seconds of the file's clock, and their number."""
        first, last, num_packets = math.inf, -math.inf, 0
        for packet in self._packets():
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                first = min(first, stamp * self._unit)
                last = max(last, stamp * self._unit + (packet.duration * self._unit if packet.duration else self._gap))
                num_packets += 1
        return first, last, num_packets

    def _jump(self, stamp: int) -> bool:
        import av

        try:
            self._container.seek(stamp, stream=self._track)
        except av.error.FFmpegError:
            return False
        return True

    def _sought(self, wanted: Wanted) -> Iterator[Shown] | None:
        """The frames from the last key frame before the first one wanted; formats without index land anywhere."""
        for back in (0.0, _DELAY_FRAMES * self._gap, *_STEPS_BACK_SECONDS):
            aim = max(0.0, wanted.start - back)
            if not self._jump(round(((self._origin or 0) + aim) / self._unit)):
                return None
            frames = self._landed(self._packets(), wanted)
            if frames is not None or aim == 0:
                return frames
        return None

    def _walked(self, opening: list[Shown], packets: Packets, wanted: Wanted) -> Iterator[Shown] | None:
        """The same without a jump: the packets before the key frame are read, and not decoded."""
        latest = wanted.start + self.lenience(self._gap)
        delay = _DELAY_FRAMES * self._gap if self._uses_dts else 0.0
        group: list[Packet[VideoStream]] = []
        num_bytes, found = 0, False
        for packet in packets:
            if packet.is_keyframe and self._stamp(packet) + delay <= latest:
                group, num_bytes, found = [], 0, True
            group.append(packet)
            num_bytes += packet.size
            if num_bytes > _MAX_GROUP_BYTES:
                return None
            if self._seconds(packet.dts) > latest:
                break
        if not found:
            return chain(opening, self._decoded(chain(group, packets), wanted))
        self._context.flush_buffers()
        return self._landed(chain(group, packets), wanted)

    def _landed(self, packets: Packets, wanted: Wanted) -> Iterator[Shown] | None:
        """The frames from the next key frame on, None if that is too late or not one."""
        from av.video.frame import PictureType

        self._now, self._passed = math.nan, []
        latest = wanted.start + self.lenience(self._gap)
        for packet in packets:
            if self._seconds(packet.dts) > latest:
                return None
            if packet.is_keyframe:
                break
        else:
            return None
        start = -math.inf if self._uses_dts or packet.pts is None else self._stamp(packet) - self._gap / 2
        frames = self._decoded(chain([packet], packets), wanted)
        for time, frame in frames:
            if time < start:  # refers to frames before the key frame
                continue
            if not time <= latest or not (frame.key_frame or frame.pict_type == PictureType.I):
                return None
            return chain([(time, frame)], frames)
        return None

    def _stamp(self, packet: Packet[VideoStream]) -> float:
        return self._seconds(packet.dts if self._uses_dts or packet.pts is None else packet.pts)

    def _seconds(self, stamp: int | None) -> float:
        return math.nan if stamp is None or self._origin is None else stamp * self._unit - self._origin

    def _packets(self) -> Packets:
        """All that can be read, to the end or to where the file breaks."""
        import av

        packets = self._container.demux(self._track)
        while True:
            self._check()
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, IndexError):  # PyAV 18, at the end, where a track has shown up on the way
                packet = None
            if packet is None:
                self._check()
                return
            if packet.size:  # an empty one would close the decoder
                yield packet

    def _opening(self, packets: Packets) -> list[Shown]:
        """What the first packet gives that gives a frame."""
        for packet in islice(packets, _BARREN_PACKETS):
            if opening := self._shown(packet):
                return opening
        return self._shown(None)

    def _decoded(self, packets: Packets, wanted: Wanted) -> Iterator[Shown]:
        """The frames that decode, in order, without those that are not wanted where that is cheaper."""
        barren = 0
        for packet in packets:
            is_idle = self._is_idle(packet, wanted)
            if is_idle and self._is_intra_only:
                continue
            if is_idle != self._skips:
                self._context.skip_frame, self._skips = "NONREF" if is_idle else "DEFAULT", is_idle
            shown = self._shown(packet)
            yield from shown
            barren = 0 if shown or is_idle else barren + 1
            if barren == _BARREN_PACKETS:
                break
        yield from self._shown(None)

    def _shown(self, packet: Packet[VideoStream] | None) -> list[Shown]:
        """The frames that a packet completes, those left in the decoder for None; none if it is damaged."""
        import av

        try:
            return [(self._time(frame), frame) for frame in self._context.decode(packet)]
        except av.error.FFmpegError:
            return []

    def _is_idle(self, packet: Packet[VideoStream], wanted: Wanted) -> bool:
        """Whether the packet's frame is surely not wanted, should frames come at the average rate; if not, see ``confirm``."""
        time = self._stamp(packet)
        if not (self._is_droppable or self._is_intra_only) or math.isnan(time):
            return False
        duration = (packet.duration or 0) * self._unit
        if wanted.within(time - self._gap / 2, time + max(2 * self._gap, duration)):
            return False
        self._passed.append((time, time + max(self._gap, duration)))
        return True

    def _time(self, frame: VideoFrame) -> float:
        stamp = frame.dts if self._uses_dts or frame.pts is None else frame.pts
        if self._is_counted:
            stamp = None
        if self._origin is None and stamp is not None:
            self._origin = stamp * self._unit - (self._now + self._gap)
        time = self._seconds(stamp)
        # A frame without a stamp, or stamped before the one that it follows, follows it at the average rate.
        self._now = self._now + self._gap if math.isnan(time) or time <= self._now else time
        return self._now
