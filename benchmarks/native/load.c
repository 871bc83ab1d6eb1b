/* The load: a closed loop of keep-alive connections that asks, reads the answer to its end and asks again.
 *
 * In the window only, it keeps each answer's time and time to first byte, and for lines that carry their send time
 * ("ns", CLOCK_MONOTONIC) how long they were on their way. CPU of the target is read at both ends of the window.
 * Where the body has "{n}", each request has a number there and a filler of changing length, so that no two
 * requests of a run are alike. With --upload it sends a body of that size instead, and reports bytes per second. One line of JSON on stdout.
 * The token comes in BENCH_TOKEN, never in the arguments. Knows nothing of what it measures. */
#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEAD_LIMIT 16384
#define LINE_LIMIT 1024
#define MS 1000000ull
#define UPLOAD_BLOCK 262144
#define NUMBER_MARK "{n}"

enum phase { OFF, CONNECTING, SENDING, IN_HEAD, IN_BODY };
enum trouble { CONNECT, STATUS, RESET, SHORT, PROTOCOL, TROUBLES };

struct conn {
    int fd, keep, lines;
    enum phase phase;
    char *request; /* the shared one, or this connection's own where bodies vary */
    long long request_length, sent;
    uint64_t start_at, asked_at, first_at;
    char head[HEAD_LIMIT], line[LINE_LIMIT];
    size_t head_used, line_used;
    struct body body;
};

struct samples {
    float *ms;
    size_t count, size;
};

static struct {
    const char *method, *path, *body, *pids;
    int port, conns, lines, uploads;
    long long upload;
    uint64_t warmup, window, ramp;
} want = {"GET", "/", "", "", 0, 1, 0, 1, 0, 0, 1000 * MS, 0};

static const char *number_mark; /* "{n}" in the body; NULL where all requests are the same */
static size_t request_size;
static struct conn *conns;
static int epoll_fd, measuring, uploads_done;
static struct samples whole, first, chunk, speed;
static long trouble[TROUBLES], reconnects;
static unsigned long long body_bytes;
static uint64_t window_from, window_until;
static char upload_block[UPLOAD_BLOCK];

static void die(const char *what) {
    fprintf(stderr, "load: %s\n", what);
    exit(1);
}

static void keep_sample(struct samples *s, double ms) {
    if (s->count == s->size) {
        s->size = s->size ? 2 * s->size : 65536;
        if (!(s->ms = realloc(s->ms, s->size * sizeof *s->ms))) die("out of memory");
    }
    s->ms[s->count++] = (float)ms;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double quantile(struct samples *s, double q) {
    if (!s->count) return -1;
    return s->ms[(size_t)(q * (double)(s->count - 1) + 0.5)];
}

/* --- CPU of the target: run time of all its threads, from the scheduler's own account --- */

static double cpu_of(const char *pid) {
    char path[320], text[128];
    double total = 0;
    snprintf(path, sizeof path, "/proc/%s/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks) return 0;
    for (struct dirent *task; (task = readdir(tasks));) {
        if (task->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%s/task/%s/schedstat", pid, task->d_name);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (fgets(text, sizeof text, file)) total += strtod(text, NULL) / 1e9;
        fclose(file);
    }
    closedir(tasks);
    return total;
}

static double cpu_now(void) {
    char list[256], *save = NULL;
    double total = 0;
    snprintf(list, sizeof list, "%s", want.pids);
    for (char *pid = strtok_r(list, ",", &save); pid; pid = strtok_r(NULL, ",", &save)) total += cpu_of(pid);
    return total;
}

/* --- one connection --- */

static void watch(struct conn *c, int op, int want_out) {
    struct epoll_event event = {.events = EPOLLIN | (want_out ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, op, c->fd, &event);
}

static void hang_up(struct conn *c, uint64_t again_at) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->phase = OFF;
    c->start_at = again_at;
}

/* A breath before the next try, so that a broken target is not hammered. */
static void fail(struct conn *c, enum trouble kind) {
    trouble[kind]++;
    hang_up(c, now_ns() + 10 * MS);
}

static void push(struct conn *c) {
    for (;;) {
        long long left = c->request_length - c->sent;
        const char *from = c->request + c->sent;
        if (left <= 0) {
            left = c->request_length + want.upload - c->sent;
            if (left > UPLOAD_BLOCK) left = UPLOAD_BLOCK;
            from = upload_block;
        }
        if (left <= 0) break;
        ssize_t n = send(c->fd, from, (size_t)left, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            watch(c, EPOLL_CTL_MOD, 1);
            return;
        }
        if (n < 0) {
            fail(c, RESET);
            return;
        }
        c->sent += n;
    }
    c->phase = IN_HEAD;
}

/* Write head and body to `to` (request_size bytes); returns the length. `varied` stands in for the number's mark. */
static long long write_request(char *to, const char *varied) {
    static const char *token;
    size_t before = number_mark ? (size_t)(number_mark - want.body) : strlen(want.body);
    const char *after = number_mark ? number_mark + strlen(NUMBER_MARK) : "";
    long long length = want.upload ? want.upload : (long long)(before + strlen(varied) + strlen(after));
    int n;
    if (!token) token = getenv("BENCH_TOKEN");
    n = snprintf(to, request_size, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: load\r\nAccept: */*\r\n", want.method,
                 want.path, want.port);
    if (token) n += snprintf(to + n, request_size - (size_t)n, "Authorization: Bearer %s\r\n", token);
    if (length)
        n += snprintf(to + n, request_size - (size_t)n, "Content-Type: application/%s\r\nContent-Length: %lld\r\n",
                      want.upload ? "octet-stream" : "json", length);
    n += snprintf(to + n, request_size - (size_t)n, "\r\n%.*s%s%s", (int)before, want.body, varied, after);
    return n;
}

static void vary_request(struct conn *c) {
    static const char filler[] = " and so on and so forth, at some length";
    static unsigned long long number;
    char varied[32 + sizeof filler];
    snprintf(varied, sizeof varied, "%08llu%.*s", number, (int)(number % (sizeof filler - 1)), filler);
    number++;
    c->request_length = write_request(c->request, varied);
}

static void ask(struct conn *c) {
    if (number_mark) vary_request(c);
    c->phase = SENDING;
    c->sent = 0;
    c->lines = 0;
    c->head_used = c->line_used = 0;
    c->asked_at = now_ns();
    c->first_at = 0;
    memset(&c->body, 0, sizeof c->body);
    push(c);
}

static void resume_asking(struct conn *c) {
    push(c);
    if (c->fd >= 0 && c->phase == IN_HEAD) watch(c, EPOLL_CTL_MOD, 0);
}

static void dial(struct conn *c) {
    int on = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)want.port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("no more sockets: raise the limit of open files");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
        fail(c, CONNECT);
        return;
    }
    c->phase = CONNECTING;
    watch(c, EPOLL_CTL_ADD, 1);
}

static void connected(struct conn *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        fail(c, CONNECT);
        return;
    }
    watch(c, EPOLL_CTL_MOD, 0);
    ask(c);
}

static void answer_over(struct conn *c, uint64_t now) {
    if (want.lines && c->lines != want.lines) {
        fail(c, SHORT);
        return;
    }
    if (want.upload) {
        keep_sample(&speed, (double)want.upload / 1e6 / ((double)(now - c->asked_at) / 1e9));
        if (++uploads_done >= want.uploads) {
            hang_up(c, UINT64_MAX);
            return;
        }
    }
    if (measuring) {
        keep_sample(&whole, (double)(now - c->asked_at) / 1e6);
        keep_sample(&first, (double)(c->first_at - c->asked_at) / 1e6);
    }
    if (c->keep) ask(c);
    else {
        reconnects++;
        hang_up(c, now);
    }
}

static void line_over(struct conn *c, uint64_t now) {
    c->line[c->line_used < LINE_LIMIT ? c->line_used : LINE_LIMIT - 1] = 0;
    if (c->line_used > 1) {
        c->lines++;
        const char *mark = strstr(c->line, "\"ns\":");
        if (mark && measuring) keep_sample(&chunk, (double)(int64_t)(now - strtoull(mark + 5, NULL, 10)) / 1e6);
    }
    c->line_used = 0;
}

static void read_lines(struct conn *c, const char *p, size_t n, uint64_t now) {
    body_bytes += measuring ? n : 0;
    if (!want.lines) return;
    while (n) {
        const char *end = memchr(p, '\n', n);
        size_t take = end ? (size_t)(end - p) : n;
        size_t room = LINE_LIMIT - 1 - (c->line_used < LINE_LIMIT - 1 ? c->line_used : LINE_LIMIT - 1);
        memcpy(c->line + c->line_used, p, take < room ? take : room);
        c->line_used += take < room ? take : room;
        if (!end) return;
        line_over(c, now);
        p = end + 1;
        n -= take + 1;
    }
}

static size_t read_head(struct conn *c, const char *p, size_t n) {
    char value[64];
    size_t before = c->head_used, take = n < HEAD_LIMIT - before ? n : HEAD_LIMIT - before;
    memcpy(c->head + before, p, take);
    c->head_used += take;
    size_t length = head_length(c->head, c->head_used);
    if (!length) {
        if (c->head_used == HEAD_LIMIT) fail(c, PROTOCOL);
        return take;
    }
    if (c->head_used < 13 || c->head[9] != '2') {
        fail(c, STATUS);
        return take;
    }
    c->keep = !(header(c->head, length, "connection", value, sizeof value) && !strcasecmp(value, "close"));
    if (header(c->head, length, "transfer-encoding", value, sizeof value)) body_chunked(&c->body);
    else if (header(c->head, length, "content-length", value, sizeof value)) body_counted(&c->body, atoll(value));
    else {
        fail(c, PROTOCOL);
        return take;
    }
    c->phase = IN_BODY;
    return length - before;
}

static void readable(struct conn *c) {
    static char buffer[262144];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    uint64_t now = now_ns();
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        fail(c, c->phase == IN_BODY ? SHORT : RESET);
        return;
    }
    if (!c->first_at) c->first_at = now;
    for (size_t at = 0; at < (size_t)n && c->fd >= 0;) {
        if (c->phase == IN_HEAD) at += read_head(c, buffer + at, (size_t)n - at);
        else if (c->phase == IN_BODY) {
            const char *data = NULL;
            size_t length;
            at += body_bite(&c->body, buffer + at, (size_t)n - at, &data, &length);
            if (length) read_lines(c, data, length, now);
        } else { /* an answer before the question was sent, or bytes behind it */
            fail(c, PROTOCOL);
            return;
        }
        if (c->fd >= 0 && c->body.bad) fail(c, PROTOCOL);
        else if (c->fd >= 0 && c->phase == IN_BODY && c->body.done) {
            int more = at < (size_t)n;
            answer_over(c, now);
            if (more) trouble[PROTOCOL]++;
            if (more) return;
        }
    }
}

static void handle(struct epoll_event *event) {
    struct conn *c = event->data.ptr;
    if (c->fd < 0) return;
    if (c->phase == CONNECTING) connected(c);
    else if (c->phase == SENDING && (event->events & EPOLLOUT)) resume_asking(c);
    else if (event->events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
}

/* --- the run --- */

static uint64_t dial_due(uint64_t now) {
    uint64_t next = UINT64_MAX;
    for (int i = 0; i < want.conns; i++) {
        if (conns[i].phase != OFF) continue;
        if (conns[i].start_at <= now) dial(&conns[i]);
        else if (conns[i].start_at < next) next = conns[i].start_at;
    }
    return next;
}

static double run(void) {
    struct epoll_event events[512];
    double cpu = 0;
    uint64_t next_dial = 0, limit = window_until;
    for (;;) {
        uint64_t now = now_ns();
        if (want.upload ? uploads_done >= want.uploads || now > limit : now >= window_until) break;
        if (!measuring && !want.upload && now >= window_from) {
            cpu = cpu_now();
            window_from = now_ns();
            measuring = 1;
        }
        if (now >= next_dial) next_dial = dial_due(now);
        uint64_t until = measuring || want.upload ? window_until : window_from;
        if (next_dial < until) until = next_dial;
        int timeout = until > now ? (int)((until - now) / MS) + 1 : 0;
        int n = epoll_wait(epoll_fd, events, 512, timeout < 1000 ? timeout : 1000);
        for (int i = 0; i < n; i++) {
            handle(&events[i]);
            if (((struct conn *)events[i].data.ptr)->phase == OFF) next_dial = 0;
        }
    }
    window_until = now_ns();
    return cpu_now() - cpu;
}

static int count_stuck(void) {
    int stuck = 0;
    for (int i = 0; i < want.conns; i++)
        if (conns[i].phase != OFF && !conns[i].first_at && window_until - conns[i].asked_at > 1000 * MS) stuck++;
    return stuck;
}

static void report(double cpu) {
    double seconds = (double)(window_until - window_from) / 1e9;
    struct samples *all[] = {&whole, &first, &chunk, &speed};
    int stuck = want.upload ? 0 : count_stuck();
    for (size_t i = 0; i < 4; i++)
        if (all[i]->count) qsort(all[i]->ms, all[i]->count, sizeof(float), by_value);
    printf("{\"seconds\":%.4f,\"requests\":%zu,\"chunks\":%zu,\"bytes\":%llu,\"cpu_s\":%.6f,", seconds, whole.count,
           chunk.count, body_bytes, cpu);
    printf("\"p50_ms\":%.4f,\"p99_ms\":%.4f,\"ttfb_p50_ms\":%.4f,\"ttfb_p99_ms\":%.4f,", quantile(&whole, .5),
           quantile(&whole, .99), quantile(&first, .5), quantile(&first, .99));
    printf("\"chunk_p50_ms\":%.4f,\"chunk_p99_ms\":%.4f,\"upload_mb_s\":%.1f,\"uploads\":%d,", quantile(&chunk, .5),
           quantile(&chunk, .99), quantile(&speed, .5), uploads_done);
    printf("\"reconnects\":%ld,\"stuck\":%d,\"errors\":{\"connect\":%ld,\"status\":%ld,\"reset\":%ld,\"short\":%ld,"
           "\"protocol\":%ld}}\n",
           reconnects, stuck, trouble[CONNECT], trouble[STATUS], trouble[RESET], trouble[SHORT], trouble[PROTOCOL]);
}

static void read_arguments(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *key = argv[i], *value = argv[i + 1];
        if (!strcmp(key, "--port")) want.port = atoi(value);
        else if (!strcmp(key, "--method")) want.method = value;
        else if (!strcmp(key, "--path")) want.path = value;
        else if (!strcmp(key, "--body")) want.body = value;
        else if (!strcmp(key, "--pids")) want.pids = value;
        else if (!strcmp(key, "--conns")) want.conns = atoi(value);
        else if (!strcmp(key, "--lines")) want.lines = atoi(value);
        else if (!strcmp(key, "--warmup-ms")) want.warmup = strtoull(value, NULL, 10) * MS;
        else if (!strcmp(key, "--window-ms")) want.window = strtoull(value, NULL, 10) * MS;
        else if (!strcmp(key, "--ramp-ms")) want.ramp = strtoull(value, NULL, 10) * MS;
        else if (!strcmp(key, "--upload")) want.upload = atoll(value);
        else if (!strcmp(key, "--uploads")) want.uploads = atoi(value);
        else die(key);
    }
}

/* One request for all connections, or one buffer each where bodies vary. */
static void prepare_requests(void) {
    const char *token = getenv("BENCH_TOKEN");
    char *shared = NULL;
    long long length = 0;
    number_mark = strstr(want.body, NUMBER_MARK);
    request_size = strlen(want.body) + strlen(token ? token : "") + 1024;
    for (int i = 0; i < want.conns; i++) {
        if (!shared || number_mark) {
            if (!(shared = malloc(request_size))) die("out of memory");
            length = write_request(shared, "");
        }
        conns[i].request = shared;
        conns[i].request_length = length;
    }
}

int main(int argc, char **argv) {
    read_arguments(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    memset(upload_block, 'x', sizeof upload_block);
    if (want.upload) want.conns = 1;
    if (!(conns = calloc((size_t)want.conns, sizeof *conns))) die("out of memory");
    prepare_requests();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    uint64_t begin = now_ns();
    for (int i = 0; i < want.conns; i++) {
        conns[i].fd = -1;
        conns[i].start_at = begin + want.ramp * (uint64_t)i / (uint64_t)want.conns;
    }
    window_from = begin + want.warmup;
    window_until = window_from + want.window;
    report(run());
    return 0;
}
