/* A driver of two NVIDIA GPUs for FFmpeg: memory of the host, and a decoder whose pictures are patterns.

Built twice, as libcuda.so.1 and as libnvcuvid.so.1. Declares what FFmpeg calls on the way from NVDEC
to host memory; everything else that it looks up fails when called. */

#include <stdlib.h>
#include <string.h>

typedef struct { int device; } Context;
typedef struct {
    size_t x, y; int kind; const char *host; char *device; void *array; size_t pitch;
} Side;
typedef struct { Side from, to; size_t width, height; } Copy;  /* CUDA_MEMCPY2D; kind 1 is the host */
typedef struct {
    unsigned long width, height, surfaces; int codec, chroma;
    unsigned long flags, bits_over_8, intra, most_wide, most_high, reserved; short area[4];
    int format, deinterlace; unsigned long target_width, target_height;
} Wanted;  /* the beginning of CUVIDDECODECREATEINFO */
typedef struct {
    int codec, chroma; unsigned bits, reserved[3]; unsigned char supported, decoders;
    unsigned short formats; unsigned width, height, blocks; unsigned short least_wide, least_high;
} Abilities;  /* CUVIDDECODECAPS */
typedef struct { int width, height, rows, bytes, pitch, count; char *surface[32]; } Decoder;

static Context primary[2] = {{0}, {1}};
static __thread Context *stack[64];
static __thread int depth;

int contexts_made, downloads, decoded;           /* read by the test */
int supported = 1, fails_after = -1;             /* set by the test */

void make_current(int device) { depth = device >= 0; stack[0] = depth ? &primary[device] : 0; }

int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return index > 1 ? 101 : 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = 512; return 0; }
int cuCtxGetCurrent(Context **context) { *context = depth ? stack[depth - 1] : 0; return 0; }
int cuCtxPushCurrent_v2(Context *context) {
    if (!context) return 201;
    stack[depth++] = context;
    return 0;
}
int cuCtxPopCurrent_v2(Context **context) { *context = depth ? stack[--depth] : 0; return 0; }
int cuCtxCreate_v2(Context **context, unsigned flags, int device) {
    *context = calloc(1, sizeof **context);
    contexts_made++;
    return cuCtxPushCurrent_v2(*context);
}
int cuCtxDestroy_v2(Context *context) { free(context); return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0;  /* as torch leaves it: FFmpeg wants others */
    *active = 1;
    return 0;
}
int cuMemAlloc_v2(char **memory, size_t size) {
    if (!depth) return 201;
    *memory = malloc(size);
    return 0;
}
int cuMemFree_v2(char *memory) { free(memory); return 0; }
int cuMemcpy2DAsync_v2(const Copy *copy, void *stream) {
    const char *from = copy->from.kind == 1 ? copy->from.host : copy->from.device;
    char *to = copy->to.kind == 1 ? (char *)copy->to.host : copy->to.device;
    if (!depth) return 201;
    downloads += copy->to.kind == 1;
    for (size_t y = 0; y < copy->height; y++)
        memcpy(to + (copy->to.y + y) * copy->to.pitch + copy->to.x,
               from + (copy->from.y + y) * copy->from.pitch + copy->from.x, copy->width);
    return 0;
}
int cuStreamSynchronize(void *stream) { return 0; }
int cuGetErrorName(int error, const char **text) { *text = "SIMULATED"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "simulated"; return 0; }

int cuvidGetDecoderCaps(Abilities *of) {
    of->supported = supported;
    of->formats = 0xffff;
    of->width = of->height = 8192;
    of->blocks = 1 << 18;
    of->least_wide = of->least_high = 48;
    return 0;
}
int cuvidCreateDecoder(Decoder **decoder, const Wanted *wanted) {
    Decoder *new = *decoder = calloc(1, sizeof *new);
    if (wanted->surfaces > 32) return 1;
    new->width = wanted->target_width;
    new->height = wanted->target_height;
    new->rows = new->height * 3 / 2;
    new->bytes = wanted->bits_over_8 ? 2 : 1;
    new->pitch = (new->width * new->bytes + 511) / 512 * 512;
    new->count = wanted->surfaces;
    return 0;
}
int cuvidDestroyDecoder(Decoder *decoder) { return 0; }  /* its surfaces may still be mapped */
int cuvidDecodePicture(Decoder *decoder, const int *picture) {
    int index = picture[2];
    if (decoded == fails_after) return 999;
    if (index < 0 || index >= decoder->count) return 1;
    if (!decoder->surface[index]) decoder->surface[index] = malloc(decoder->pitch * decoder->rows);
    decoded++;
    for (int y = 0; y < decoder->rows; y++)
        for (int x = 0; x < decoder->width; x++) {
            char *at = decoder->surface[index] + y * decoder->pitch + x * decoder->bytes;
            int value = (x * 3 + y * 5 + decoded * 7) % 251;
            if (decoder->bytes == 1) *at = value;
            else *(unsigned short *)at = (value * 4 + 1) << 6;
        }
    return 0;
}
int cuvidMapVideoFrame64(Decoder *decoder, int index, char **at, unsigned *pitch, void *how) {
    *at = decoder->surface[index];
    *pitch = decoder->pitch;
    return 0;
}
int cuvidUnmapVideoFrame64(Decoder *decoder, char *at) { return 0; }

#define NO(name) int name(void) { return 801; }
NAMES
