/* The work of `inspect` by libbpf in C, for bench_inspect.py: relocate -b BTF... -o OBJECT...
 *
 * Each object is opened and loaded against each BTF. bpf(2) is answered here with a descriptor of /dev/null, so that
 * nothing is spent in the kernel and root is not needed: an executable's symbols come before a library's (ELF gABI,
 * "Shared Object Dependencies"), and libbpf reaches the kernel through syscall(3). With -c the relocations are counted,
 * from libbpf's own messages.
 */
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 1024

struct file { void *data; size_t size; };

static int null_fd;
static unsigned long relocations;

long syscall(long number, ...)
{
    if (number != __NR_bpf) {
        errno = ENOSYS;
        return -1;
    }
    return fcntl(null_fd, F_DUPFD_CLOEXEC, 100);
}

static int count(enum libbpf_print_level level, const char *format, va_list arguments)
{
    char text[4096];
    unsigned number;

    vsnprintf(text, sizeof(text), format, arguments);
    /* the first message about a record: "prog 'x': relo #0: <byte_off> [5] struct ..." */
    const char *place = strstr(text, ": relo #");
    if (place && sscanf(place, ": relo #%u: <", &number) == 1 && strstr(place, ": <"))
        relocations++;
    return 0;
}

static int quiet(enum libbpf_print_level level, const char *format, va_list arguments)
{
    return 0;
}

static struct file read_file(const char *path)
{
    struct file file = {};
    FILE *in = fopen(path, "rb");

    if (!in || fseek(in, 0, SEEK_END)) {
        perror(path);
        exit(2);
    }
    file.size = ftell(in);
    rewind(in);
    file.data = malloc(file.size);
    if (fread(file.data, 1, file.size, in) != file.size) {
        perror(path);
        exit(2);
    }
    fclose(in);
    return file;
}

static int relocate(struct file file, const char *btf)
{
    LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = "bench", .btf_custom_path = btf);
    struct bpf_object *object = bpf_object__open_mem(file.data, file.size, &options);
    struct bpf_map *map;
    int error;

    if (!object)
        return 0;
    bpf_object__for_each_map(map, object)
        bpf_map__set_autocreate(map, false);
    error = bpf_object__load(object);
    bpf_object__close(object);
    return !error;
}

int main(int argc, char **argv)
{
    const char *targets[MOST];
    struct file objects[MOST];
    int target_count = 0, object_count = 0, loaded = 0;
    char kind = 0;

    null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    libbpf_set_print(quiet);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-c"))
            libbpf_set_print(count);
        else if (argv[i][0] == '-')
            kind = argv[i][1];
        else if (kind == 'b' && target_count < MOST)
            targets[target_count++] = argv[i];
        else if (kind == 'o' && object_count < MOST)
            objects[object_count++] = read_file(argv[i]);
    }
    for (int t = 0; t < target_count; t++)
        for (int o = 0; o < object_count; o++)
            loaded += relocate(objects[o], targets[t]);
    printf("%d %lu\n", loaded, relocations);
    return 0;
}
