# docker build -t gpukoop .                                              for the CPU
# docker build --build-arg EXTRAS=cuda13,plot,fourier -t gpukoop .       for NVIDIA GPUs: docker run --gpus all ...
# The CUDA libraries come with the wheels of the extra; the driver is the host's.
FROM python:3.12-slim

ARG EXTRAS=plot,fourier,tables
COPY . /source
RUN pip install --no-cache-dir "/source[${EXTRAS}]" && rm -rf /source

# Compiled sums are kept in the home of a user who is not root.
RUN useradd --create-home koop
USER koop
WORKDIR /home/koop
ENTRYPOINT ["gpukoop"]
CMD ["info"]
