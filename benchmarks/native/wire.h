/* The little of HTTP/1.1 that the upstream and the load generator share: where a body ends, what a header says. */
#ifndef WIRE_H
#define WIRE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum body_state { COUNTED, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

struct body {
    enum body_state state;
    long long left; /* bytes of the body, or of this chunk, still to come */
    int line_used;  /* in a trailer: has this line a character yet? */
    int extension;  /* in a size line: past the digits */
    int done, bad;
};

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static inline void body_counted(struct body *b, long long length) {
    memset(b, 0, sizeof *b);
    b->state = COUNTED;
    b->left = length;
    b->done = length == 0;
}

static inline void body_chunked(struct body *b) {
    memset(b, 0, sizeof *b);
    b->state = CHUNK_SIZE;
}

static inline int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* One byte of framing (not of payload). */
static inline void body_framing_byte(struct body *b, char c) {
    if (b->state == CHUNK_SIZE) {
        int digit = b->extension ? -1 : hex_digit(c);
        if (digit >= 0 && b->left < (1ll << 50)) b->left = b->left * 16 + digit;
        else if (c == '\n') {
            b->state = b->left ? CHUNK_DATA : TRAILER;
            b->extension = b->line_used = 0;
        } else if (c == '\r' || c == ';' || b->extension) b->extension = 1;
        else b->bad = 1;
    } else if (b->state == CHUNK_END) {
        if (c == '\n') b->state = CHUNK_SIZE, b->left = 0;
        else if (c != '\r') b->bad = 1;
    } else { /* TRAILER: an empty line ends it */
        if (c == '\n') {
            if (!b->line_used) b->done = 1;
            b->line_used = 0;
        } else if (c != '\r') b->line_used = 1;
    }
}

/* Take a bite of `n` bytes at `p`; returns how many were used and points `data` to the payload among them. */
static inline size_t body_bite(struct body *b, const char *p, size_t n, const char **data, size_t *len) {
    size_t used = 0;
    *len = 0;
    while (used < n && !b->done && !b->bad) {
        if (b->state != COUNTED && b->state != CHUNK_DATA) {
            body_framing_byte(b, p[used++]);
            continue;
        }
        size_t take = n - used < (size_t)b->left ? n - used : (size_t)b->left;
        *data = p + used;
        *len = take;
        b->left -= (long long)take;
        if (b->left == 0 && b->state == COUNTED) b->done = 1;
        if (b->left == 0 && b->state == CHUNK_DATA) b->state = CHUNK_END;
        return used + take;
    }
    return used;
}

/* The value of a header in a head of `n` bytes, copied to `out`; 0 if there is none. */
static inline int header(const char *head, size_t n, const char *name, char *out, size_t size) {
    size_t length = strlen(name);
    const char *end = head + n, *line = head;
    while (line < end) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        if (!stop) return 0;
        if ((size_t)(stop - line) > length && line[length] == ':' && !strncasecmp(line, name, length)) {
            const char *value = line + length + 1;
            while (value < stop && (*value == ' ' || *value == '\t')) value++;
            size_t len = (size_t)(stop - value);
            while (len && (value[len - 1] == '\r' || value[len - 1] == ' ')) len--;
            if (len >= size) len = size - 1;
            memcpy(out, value, len);
            out[len] = 0;
            return 1;
        }
        line = stop + 1;
    }
    return 0;
}

/* The length of the head that ends within `n` bytes at `p`, its empty line included; 0 if it does not end. */
static inline size_t head_length(const char *p, size_t n) {
    const char *end = n >= 4 ? memmem(p, n, "\r\n\r\n", 4) : NULL;
    return end ? (size_t)(end - p) + 4 : 0;
}

#endif
