# syntax=docker/dockerfile:1
# vdeblur on a CPU, with OpenVINO, which is the fast way to run its networks there.
#
#   docker build --tag vdeblur .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/videos" vdeblur video ride.mp4
#
# On x86-64 torch as it comes brings CUDA, which makes the image several times as large. PyTorch's builds for
# CPUs make it small; PyTorch's installation page has their address:
#
#   docker build --build-arg PIP_EXTRA_INDEX_URL=ADDRESS --tag vdeblur .
#
# Cameras over SRT or RIST need an installed ffmpeg, which is not in here.

# The Python that constraints.txt was tested with.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY vdeblur ./vdeblur
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
COPY constraints.txt /usr/share/vdeblur/
# torch is most of the image: a layer of its own, which a change of vdeblur leaves as it is.
RUN python3 -m pip install -c /usr/share/vdeblur/constraints.txt torch
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m pip install -c /usr/share/vdeblur/constraints.txt "$(ls /wheels/*.whl)[live,openvino]"

# Whatever user the container runs as (--user) may write to this home: weights that are kept, and what can
# be made again. Mount a volume there to keep both.
RUN useradd --uid 1000 --create-home vdeblur && chmod 1777 /home/vdeblur
ENV HOME=/home/vdeblur
USER 1000:1000
WORKDIR /videos
# As Ctrl-C: files are finished before it ends.
STOPSIGNAL SIGINT
ENTRYPOINT ["vdeblur"]
CMD ["--help"]
