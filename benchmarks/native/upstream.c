/* A fake Ollama that is never the bottleneck: one thread, epoll, one send() per line, as Go flushes.
 *
 * A model's name is the shape of its answer: fake-n100-d20-t500-p64 is 100 lines, 20 ms apart, the first after
 * 500 ms, each padded by 64 bytes. Every line carries its own send time ("ns", CLOCK_MONOTONIC).
 * A second port is for the benchmark: /_stats, /_reset, /_cold?ms=6000. Knows nothing of who is in between. */
#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define HEAD_LIMIT 32768
#define PEEK_LIMIT 4096
#define LINES_AT_ONCE 64
#define TAGS_LENGTH 1980
#define DIMENSIONS 384

enum phase { IN_HEAD, IN_BODY, STREAMING };

struct conn {
    int fd, control, keep, sse, want_out, dead;
    enum phase phase;
    char *in;
    size_t in_length;
    struct body body;
    char method[8], path[256], peek[PEEK_LIMIT + 1], model[128];
    size_t peek_length;
    int lines, at, gap_ms, pad;
    uint64_t due;
    size_t heap_at; /* 1 + index in the heap, 0: not in it */
    char *out;
    size_t out_length, out_sent, out_size;
    struct conn *next_dead;
};

static struct {
    long open, busy, requests, chats, aborted, refused;
    unsigned long long blob_bytes, last_abort, first_chat, last_chat, ready;
} stats;

static int epoll_fd, alarm_fd, ready_fd, service_fd, control_fd;
static int cold, refuse_while_cold;
static char tags[TAGS_LENGTH + 1], embedding[DIMENSIONS * 16];
static struct conn **heap, *graveyard;
static size_t heap_count, heap_size;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void add(int fd, void *what) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = what};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

/* --- the heap of streams by the time their next line is due --- */

static void heap_put(size_t at, struct conn *c) {
    heap[at] = c;
    c->heap_at = at + 1;
}

static void heap_sift(size_t at) {
    struct conn *c = heap[at];
    while (at && heap[(at - 1) / 2]->due > c->due) {
        heap_put(at, heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= heap_count) break;
        if (child + 1 < heap_count && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= c->due) break;
        heap_put(at, heap[child]);
        at = child;
    }
    heap_put(at, c);
}

static void heap_schedule(struct conn *c, uint64_t due) {
    c->due = due;
    if (!c->heap_at) {
        if (heap_count == heap_size) {
            heap_size = heap_size ? 2 * heap_size : 1024;
            if (!(heap = realloc(heap, heap_size * sizeof *heap))) die("realloc");
        }
        heap_put(heap_count++, c);
    }
    heap_sift(c->heap_at - 1);
}

static void heap_remove(struct conn *c) {
    if (!c->heap_at) return;
    size_t at = c->heap_at - 1;
    c->heap_at = 0;
    if (at == --heap_count) return;
    heap_put(at, heap[heap_count]);
    heap_sift(at);
}

/* --- connections --- */

static void conn_close(struct conn *c) {
    if (c->dead) return;
    c->dead = 1;
    heap_remove(c);
    if (c->phase != IN_HEAD) stats.busy--;
    if (!c->control) stats.open--;
    close(c->fd);
    c->next_dead = graveyard; /* freed at the end of the round: events of this round may still name it */
    graveyard = c;
}

static void watch(struct conn *c, int want_out) {
    if (c->want_out == want_out) return;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (want_out ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
    c->want_out = want_out;
}

static void flush_out(struct conn *c) {
    while (c->out_sent < c->out_length) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_length - c->out_sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) conn_close(c);
            else watch(c, 1);
            return;
        }
        c->out_sent += (size_t)n;
    }
    c->out_sent = c->out_length = 0;
    watch(c, 0);
}

static void put(struct conn *c, const char *data, size_t n) {
    size_t sent = 0;
    if (c->dead) return;
    if (!c->out_length) {
        ssize_t done = send(c->fd, data, n, MSG_NOSIGNAL);
        if (done < 0 && errno != EAGAIN) {
            conn_close(c);
            return;
        }
        sent = done > 0 ? (size_t)done : 0;
        if (sent == n) return;
    }
    if (c->out_length + n - sent > c->out_size) {
        c->out_size = 2 * (c->out_length + n - sent);
        if (!(c->out = realloc(c->out, c->out_size))) die("realloc");
    }
    memcpy(c->out + c->out_length, data + sent, n - sent);
    c->out_length += n - sent;
    watch(c, 1);
}

static void reply(struct conn *c, const char *status, const char *type, const char *text) {
    char head[512], *whole;
    size_t length = strlen(text);
    int bare = !strcmp(c->method, "HEAD");
    int n = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s\r\n", status,
                     type, length, c->keep ? "" : "Connection: close\r\n");
    if (!(whole = malloc((size_t)n + length))) die("malloc");
    memcpy(whole, head, (size_t)n);
    memcpy(whole + n, text, length);
    put(c, whole, (size_t)n + (bare ? 0 : length));
    free(whole);
}

static void reply_json(struct conn *c, const char *status, const char *text) {
    reply(c, status, "application/json; charset=utf-8", text);
}

/* --- streams --- */

static size_t line_text(struct conn *c, char *to, size_t size) {
    static const char padding[] = "................................................................";
    int last = c->at == c->lines - 1, pad = c->pad < 64 ? c->pad : 64;
    unsigned long long mark = now_ns();
    if (c->sse && last) return (size_t)snprintf(to, size, "data: [DONE]\n\n");
    if (c->sse)
        return (size_t)snprintf(to, size,
                                "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1763683200,"
                                "\"model\":\"%s\",\"system_fingerprint\":\"fp_ollama\",\"ns\":%llu,\"choices\":[{\"index\":0,"
                                "\"delta\":{\"role\":\"assistant\",\"content\":\"tok%.*s\"},\"finish_reason\":null}]}\n\n",
                                c->model, mark, pad, padding);
    return (size_t)snprintf(to, size,
                            "{\"model\":\"%s\",\"created_at\":\"2026-11-21T00:00:00.000Z\",\"ns\":%llu,"
                            "\"message\":{\"role\":\"assistant\",\"content\":\"tok%.*s\"},\"done\":%s}\n",
                            c->model, mark, pad, padding, last ? "true" : "false");
}

static void one_line(struct conn *c) {
    char text[1024], block[1536];
    int n = 0;
    size_t length = line_text(c, text, sizeof text);
    if (c->at == 0)
        n = snprintf(block, sizeof block, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n",
                     c->sse ? "text/event-stream" : "application/x-ndjson");
    n += snprintf(block + n, sizeof block - (size_t)n, "%zx\r\n%.*s\r\n", length, (int)length, text);
    put(c, block, (size_t)n);
    c->at++;
}

static void request_over(struct conn *c) {
    if (c->dead) return;
    c->phase = IN_HEAD;
    stats.busy--;
    c->in_length = c->peek_length = 0;
    c->peek[0] = 0;
    if (!c->keep) conn_close(c);
}

static void stream_due(struct conn *c) {
    for (int i = 0; i < LINES_AT_ONCE && c->at < c->lines && !c->dead; i++) {
        if (c->out_length) { /* its reader is slow: look again soon */
            heap_schedule(c, now_ns() + 1000000ull);
            return;
        }
        one_line(c);
        if (c->gap_ms) break;
    }
    if (c->dead) return;
    if (c->at == c->lines) {
        heap_remove(c);
        put(c, "0\r\n\r\n", 5);
        request_over(c);
    } else heap_schedule(c, c->due + (uint64_t)c->gap_ms * 1000000ull);
}

static int shape(const char *model, char letter, int otherwise) {
    char key[3] = {'-', letter, 0};
    const char *at = strstr(model, key);
    return at && at[2] >= '0' && at[2] <= '9' ? atoi(at + 2) : otherwise;
}

static void find_model(struct conn *c) {
    const char *at = strstr(c->peek, "\"model\"");
    at = at ? strchr(at + 7, '"') : NULL;
    size_t n = at ? strcspn(at + 1, "\"\\") : 0;
    if (n >= sizeof c->model) n = sizeof c->model - 1;
    if (at) memcpy(c->model, at + 1, n);
    c->model[n] = 0;
}

static void chat(struct conn *c, int sse) {
    char text[512];
    stats.last_chat = now_ns();
    if (!stats.chats++) stats.first_chat = stats.last_chat;
    c->sse = sse;
    c->lines = shape(c->model, 'n', 3);
    c->gap_ms = shape(c->model, 'd', 0);
    c->pad = shape(c->model, 'p', 0);
    c->at = 0;
    if (c->lines < 1) c->lines = 1;
    if (strstr(c->peek, "\"stream\":false") || strstr(c->peek, "\"stream\": false")) {
        snprintf(text, sizeof text,
                 "{\"model\":\"%s\",\"created_at\":\"2026-11-21T00:00:00.000Z\",\"message\":{\"role\":\"assistant\","
                 "\"content\":\"tok\"},\"done\":true,\"done_reason\":\"stop\",\"total_duration\":174560334,"
                 "\"load_duration\":101397084,\"prompt_eval_count\":40,\"prompt_eval_duration\":13074791,"
                 "\"eval_count\":1,\"eval_duration\":52479709}", c->model);
        reply_json(c, "200 OK", text);
        request_over(c);
        return;
    }
    c->phase = STREAMING;
    heap_schedule(c, now_ns() + (uint64_t)shape(c->model, 't', 0) * 1000000ull);
}

/* --- requests --- */

static void become_ready(void) {
    if (!cold) return;
    if (refuse_while_cold) {
        if (listen(service_fd, 4096)) die("listen");
        add(service_fd, &service_fd);
    }
    cold = 0;
    stats.ready = now_ns();
}

static void set_timer(int fd, uint64_t at) {
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(at / 1000000000ull), .tv_nsec = (long)(at % 1000000000ull)}};
    timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void answer_control(struct conn *c) {
    char text[1024];
    const char *ms = strstr(c->path, "ms=");
    if (!strncmp(c->path, "/_cold", 6) && ms) set_timer(ready_fd, now_ns() + strtoull(ms + 3, NULL, 10) * 1000000ull + 1);
    if (!strncmp(c->path, "/_reset", 7)) {
        long open = stats.open, busy = stats.busy;
        unsigned long long ready = stats.ready;
        memset(&stats, 0, sizeof stats);
        stats.open = open;
        stats.busy = busy;
        stats.ready = ready;
    }
    snprintf(text, sizeof text,
             "{\"open\":%ld,\"busy\":%ld,\"requests\":%ld,\"chats\":%ld,\"aborted\":%ld,\"refused\":%ld,\"blob_bytes\":%llu,"
             "\"last_abort_ns\":%llu,\"first_chat_ns\":%llu,\"last_chat_ns\":%llu,\"ready_ns\":%llu,\"cold\":%d}",
             stats.open, stats.busy - 1, stats.requests, stats.chats, stats.aborted, stats.refused, stats.blob_bytes,
             stats.last_abort, stats.first_chat, stats.last_chat, stats.ready, cold);
    reply_json(c, "200 OK", text);
    request_over(c);
}

static int is(struct conn *c, const char *method, const char *path) {
    size_t n = strcspn(c->path, "?");
    return !strcmp(c->method, method) && n == strlen(path) && !memcmp(c->path, path, n);
}

static void embed(struct conn *c) {
    char text[sizeof embedding + 512];
    snprintf(text, sizeof text,
             "{\"model\":\"%s\",\"embeddings\":[[%s]],\"total_duration\":14143917,\"load_duration\":1019500,"
             "\"prompt_eval_count\":48}", c->model, embedding);
    reply_json(c, "200 OK", text);
    request_over(c);
}

static void answer_plain(struct conn *c) {
    char text[512];
    int get = !strcmp(c->method, "HEAD") || !strcmp(c->method, "GET");
    if (get && !strcmp(c->path, "/")) reply(c, "200 OK", "text/plain; charset=utf-8", "Ollama is running");
    else if (get && !strcmp(c->path, "/api/tags")) reply_json(c, "200 OK", tags);
    else if (get && !strcmp(c->path, "/api/version")) reply_json(c, "200 OK", "{\"version\":\"0.12.6\"}");
    else if (is(c, "GET", "/api/ps")) reply_json(c, "200 OK", "{\"models\":[]}");
    else if (is(c, "GET", "/v1/models")) reply_json(c, "200 OK", "{\"object\":\"list\",\"data\":[]}");
    else if (is(c, "POST", "/api/show")) reply_json(c, "200 OK", "{\"details\":{},\"model_info\":{},\"capabilities\":[\"completion\"]}");
    else if (is(c, "POST", "/api/generate") || is(c, "POST", "/api/chat")) { /* a model is loaded */
        snprintf(text, sizeof text,
                 "{\"model\":\"%s\",\"created_at\":\"2026-11-21T00:00:00.000Z\",\"response\":\"\",\"done\":true,"
                 "\"done_reason\":\"load\"}", c->model);
        reply_json(c, "200 OK", text);
    } else if (!strcmp(c->method, "POST") && !strncmp(c->path, "/api/blobs/", 11)) reply(c, "201 Created", "text/plain", "");
    else reply(c, "404 Not Found", "text/plain", "404 page not found");
    request_over(c);
}

static void answer(struct conn *c) {
    if (c->control) {
        answer_control(c);
        return;
    }
    stats.requests++;
    find_model(c);
    if (cold) {
        stats.refused++;
        reply_json(c, "503 Service Unavailable", "{\"error\":\"starting\"}");
        request_over(c);
    } else if (is(c, "POST", "/v1/chat/completions")) chat(c, 1);
    else if (is(c, "POST", "/api/chat") && !strstr(c->peek, "\"messages\":[]") && strstr(c->peek, "\"messages\"")) chat(c, 0);
    else if (is(c, "POST", "/api/embed")) embed(c);
    else answer_plain(c);
}

static int parse_head(struct conn *c, size_t n) {
    char value[64];
    c->in[n - 1] = 0;
    if (sscanf(c->in, "%7s %255s", c->method, c->path) != 2) return 0;
    c->keep = !(header(c->in, n, "connection", value, sizeof value) && !strcasecmp(value, "close"));
    if (strstr(c->in, " HTTP/1.0\r\n")) c->keep = 0;
    if (header(c->in, n, "transfer-encoding", value, sizeof value)) body_chunked(&c->body);
    else if (header(c->in, n, "content-length", value, sizeof value)) body_counted(&c->body, atoll(value));
    else body_counted(&c->body, 0);
    if (header(c->in, n, "expect", value, sizeof value)) put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    c->phase = IN_BODY;
    stats.busy++;
    return 1;
}

static size_t feed_head(struct conn *c, const char *p, size_t n) {
    size_t room = HEAD_LIMIT - c->in_length, take = n < room ? n : room, before = c->in_length;
    memcpy(c->in + before, p, take);
    c->in_length += take;
    size_t length = head_length(c->in, c->in_length);
    if (!length) {
        if (c->in_length == HEAD_LIMIT) conn_close(c);
        return take;
    }
    if (!parse_head(c, length)) conn_close(c);
    else if (c->body.done) answer(c);
    return length - before;
}

static size_t feed_body(struct conn *c, const char *p, size_t n) {
    const char *data = NULL;
    size_t length, used = body_bite(&c->body, p, n, &data, &length);
    size_t room = PEEK_LIMIT - c->peek_length, keep = length < room ? length : room;
    if (keep) memcpy(c->peek + c->peek_length, data, keep);
    c->peek_length += keep;
    c->peek[c->peek_length] = 0;
    stats.blob_bytes += length;
    if (c->body.bad) conn_close(c);
    else if (c->body.done) answer(c);
    return used;
}

static void gone(struct conn *c) {
    if (c->phase != IN_HEAD && !c->control) {
        stats.aborted++;
        stats.last_abort = now_ns();
    }
    conn_close(c);
}

/* What is only counted is thrown away by the kernel, so that the upstream is never what limits an upload. */
static ssize_t swallow(struct conn *c) {
    size_t most = c->body.left - 1 < 1 << 20 ? (size_t)c->body.left - 1 : 1 << 20;
    ssize_t n = recv(c->fd, NULL, most, MSG_TRUNC);
    if (n > 0) {
        c->body.left -= n;
        stats.blob_bytes += (unsigned long long)n;
    }
    return n;
}

static void readable(struct conn *c) {
    static char buffer[262144];
    for (int i = 0; i < 16 && !c->dead; i++) {
        int bulk = c->phase == IN_BODY && c->body.state == COUNTED && c->body.left > 1 && c->peek_length == PEEK_LIMIT;
        ssize_t n = bulk ? swallow(c) : recv(c->fd, buffer, sizeof buffer, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) gone(c);
        if (n <= 0) return;
        if (bulk) continue;
        for (size_t at = 0; at < (size_t)n && !c->dead;) {
            if (c->phase == IN_HEAD) at += feed_head(c, buffer + at, (size_t)n - at);
            else if (c->phase == IN_BODY) at += feed_body(c, buffer + at, (size_t)n - at);
            else conn_close(c); /* pipelined behind a stream: nobody does that here */
        }
        if ((size_t)n < sizeof buffer) return;
    }
}

/* --- the loop --- */

static int bound(int port, int *actual) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address)) die("bind");
    getsockname(fd, (struct sockaddr *)&address, &length);
    *actual = ntohs(address.sin_port);
    return fd;
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct conn *c = calloc(1, sizeof *c);
        if (!c || !(c->in = malloc(HEAD_LIMIT + 1))) die("malloc");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        c->fd = fd;
        c->control = listener == control_fd;
        if (!c->control) stats.open++;
        add(fd, c);
    }
}

static void bury(void) {
    while (graveyard) {
        struct conn *c = graveyard;
        graveyard = c->next_dead;
        free(c->in);
        free(c->out);
        free(c);
    }
}

static void run_due(void) {
    while (heap_count && heap[0]->due <= now_ns()) stream_due(heap[0]);
    bury();
    if (heap_count) set_timer(alarm_fd, heap[0]->due);
}

static void handle(struct epoll_event *event) {
    uint64_t times;
    void *what = event->data.ptr;
    if (what == &service_fd || what == &control_fd) accept_all(*(int *)what);
    else if (what == &alarm_fd || what == &ready_fd) {
        if (read(*(int *)what, &times, sizeof times) > 0 && what == &ready_fd) become_ready();
    } else {
        struct conn *c = what;
        if (!c->dead && (event->events & EPOLLOUT)) flush_out(c);
        if (!c->dead && (event->events & ~(uint32_t)EPOLLOUT)) readable(c);
    }
}

static void fill_embedding(void) {
    int n = 0;
    for (int i = 0; i < DIMENSIONS; i++)
        n += snprintf(embedding + n, sizeof embedding - (size_t)n, "%s%.8f", i ? "," : "", (i * 37 % 199 - 99) / 1987.0);
}

static void fill_tags(void) {
    int n = snprintf(tags, sizeof tags, "{\"models\":[");
    for (int i = 0; i < 5; i++)
        n += snprintf(tags + n, sizeof tags - (size_t)n,
                      "%s{\"name\":\"fake-%d:latest\",\"model\":\"fake-%d:latest\",\"modified_at\":\"2026-11-01T00:00:00Z\","
                      "\"size\":4920753328,\"digest\":\"%064d\",\"details\":{\"format\":\"gguf\",\"family\":\"llama\","
                      "\"families\":[\"llama\"],\"parameter_size\":\"8.0B\",\"quantization_level\":\"Q4_K_M\"}}",
                      i ? "," : "", i, i, i);
    n += snprintf(tags + n, sizeof tags - (size_t)n, "],\"padding\":\"");
    while (n < TAGS_LENGTH - 2) tags[n++] = '.';
    memcpy(tags + n, "\"}", 3);
}

int main(int argc, char **argv) {
    struct epoll_event events[256];
    int port, control;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--cold")) cold = 1;
        if (!strcmp(argv[i], "--refuse")) refuse_while_cold = cold = 1;
    }
    signal(SIGPIPE, SIG_IGN);
    fill_tags();
    fill_embedding();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    alarm_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    ready_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    service_fd = bound(0, &port);
    control_fd = bound(0, &control);
    if ((!refuse_while_cold && listen(service_fd, 4096)) || listen(control_fd, 64)) die("listen");
    add(alarm_fd, &alarm_fd);
    add(ready_fd, &ready_fd);
    add(control_fd, &control_fd);
    if (!refuse_while_cold) add(service_fd, &service_fd);
    printf("%d %d\n", port, control);
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < n; i++) handle(&events[i]);
        run_due();
    }
}
