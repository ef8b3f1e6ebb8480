/* A load of distinct requests over HTTP/2 (prior knowledge) or HTTP/1.1, cheaper than any server under test.
 *
 *   load PORT h2|h1 IN_FLIGHT CONNECTIONS SECONDS REQUESTS HEADERS OUT SAMPLE_EVERY [RATE]
 *
 * Closed loop: IN_FLIGHT calls always. With RATE (h2 only) open loop: so many a second on average, as chance has it (Poisson),
 * whatever is answered; latencies count from when a call was due. Beyond IN_FLIGHT it waits here, which is in its latency.
 *
 * REQUESTS: count, then each request as size and bytes (u32, little-endian): for h2 a body, for h1 everything from the
 * request line on. HEADERS (h2 only): one HPACK block for all requests. SECONDS 0: every request once.
 * OUT: latencies of finished calls in seconds (f64), after a JSON line of what happened. Answers of every SAMPLE_EVERY-th
 * call go to OUT.answers as row (u32), size (u32), bytes. What a server says at the end of a call is told apart by bytes
 * alone: each distinct block of trailers is counted, and the caller decodes them. Frames: RFC 9113.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
#define STREAMS 65536
#define BLOCKS 64
#define SAMPLES 4000
#define FRAME 16384

typedef struct { unsigned char *at; size_t size, room; } Bytes;
typedef struct {
  uint32_t id, row;
  int active, sampled;
  double began;
  size_t sent;     /* bytes of the body on their way */
  int64_t window;
  Bytes answer;
  size_t answered; /* bytes of DATA */
  int status_ok;   /* the first header block began with :status 200 */
  int headers_seen;
} Stream;
typedef struct {
  int fd, in_flight;
  Bytes in, out;
  size_t out_at;
  int64_t window, first_window;
  uint64_t taken;
  uint32_t next_id;
  Stream *streams;
  uint32_t *pending; /* streams whose body waits for a window */
  int pending_count;
  int wants_write;
} Link;

static unsigned char **requests;
static uint32_t *sizes, request_count, next_request, row_limit;
static Bytes header_block;
static double stop_at, rate, due_at, *latencies;
static size_t latency_count, latency_room;
static uint64_t failed, sent_count;
static struct { unsigned char at[1024]; size_t size; uint64_t count; } blocks[BLOCKS];
static int block_count, h1, epoll_fd, sample_every, sampled_count, in_flight_per_link;
static uint64_t other_blocks, http_status[600];
static FILE *answers;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}
static void die(const char *why) { fprintf(stderr, "load: %s\n", why); exit(1); }
static void put(Bytes *b, const void *from, size_t size) {
  if (b->size + size > b->room) {
    b->room = (b->size + size) * 2;
    if (!(b->at = realloc(b->at, b->room))) die("memory");
  }
  memcpy(b->at + b->size, from, size);
  b->size += size;
}
static uint32_t u32(const unsigned char *p) { return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]; }
static void frame(Link *l, int kind, int flags, uint32_t id, const void *from, size_t size) {
  unsigned char head[9] = {size >> 16, size >> 8, size, kind, flags, id >> 24, id >> 16, id >> 8, id};
  put(&l->out, head, 9);
  put(&l->out, from, size);
}
static int more(void) { return row_limit ? sent_count < row_limit : (rate > 0 ? due_at : now()) < stop_at; }

static void finish(Link *l, Stream *s, int ok) {
  if (ok) {
    if (latency_count == latency_room) {
      latency_room = latency_room ? latency_room * 2 : 1 << 16;
      latencies = realloc(latencies, latency_room * sizeof(double));
    }
    latencies[latency_count++] = now() - s->began;
    if (s->sampled && sampled_count < SAMPLES) {
      uint32_t head[2] = {s->row, s->answer.size};
      sampled_count++;
      fwrite(head, 4, 2, answers);
      fwrite(s->answer.at, 1, s->answer.size, answers);
    }
  } else failed++;
  s->active = 0;
  l->in_flight--;
}
static void pump_body(Link *l, Stream *s) {
  size_t size = sizes[s->row];
  while (s->sent < size && l->window > 0 && s->window > 0) {
    size_t part = size - s->sent;
    if (part > FRAME) part = FRAME;
    if ((int64_t)part > l->window) part = l->window;
    if ((int64_t)part > s->window) part = s->window;
    frame(l, DATA, s->sent + part == size, s->id, requests[s->row] + s->sent, part);
    s->sent += part;
    l->window -= part;
    s->window -= part;
  }
}
static void pump_pending(Link *l) {
  int kept = 0;
  for (int i = 0; i < l->pending_count; i++) {
    Stream *s = &l->streams[(l->pending[i] >> 1) % STREAMS];
    if (!s->active || s->id != l->pending[i]) continue;
    pump_body(l, s);
    if (s->sent < sizes[s->row]) l->pending[kept++] = s->id;
  }
  l->pending_count = kept;
}
static void start(Link *l) {
  Stream *s = &l->streams[(l->next_id >> 1) % STREAMS];
  if (s->active) die("a call never ended");
  unsigned char *kept = s->answer.at;
  size_t room = s->answer.room;
  memset(s, 0, sizeof *s);
  s->answer.at = kept;
  s->answer.room = room;
  s->id = l->next_id;
  l->next_id += 2;
  s->row = next_request++ % request_count;
  s->active = 1;
  s->sampled = sample_every && sent_count % sample_every == 0;
  s->window = l->first_window;
  sent_count++;
  l->in_flight++;
  s->began = rate > 0 ? due_at : now();
  if (h1) { put(&l->out, requests[s->row], sizes[s->row]); return; }
  frame(l, HEADERS, 0x4, s->id, header_block.at, header_block.size);
  pump_body(l, s);
  if (s->sent < sizes[s->row]) l->pending[l->pending_count++] = s->id;
}
static void flush_out(Link *l) {
  while (l->out_at < l->out.size) {
    ssize_t n = send(l->fd, l->out.at + l->out_at, l->out.size - l->out_at, MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
    if (n < 0) die("the server closed a connection");
    l->out_at += n;
  }
  if (l->out_at == l->out.size) l->out_at = l->out.size = 0;
  int wants = l->out.size > 0;
  if (wants != l->wants_write) {
    struct epoll_event e = {.events = EPOLLIN | (wants ? EPOLLOUT : 0), .data.ptr = l};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, l->fd, &e);
    l->wants_write = wants;
  }
}
static void fill(Link *l) {
  while (rate <= 0 && l->in_flight < in_flight_per_link && more()) start(l);
  flush_out(l);
}
/* Open loop: start what is due, on one link after the other; returns the milliseconds until the next one is. */
static double start_due(Link **links, int connections) {
  static int turn;
  double at = now();
  while (more() && due_at <= at) {
    int tried = 0;
    while (tried < connections && links[turn]->in_flight >= in_flight_per_link) turn = (turn + 1) % connections, tried++;
    if (tried == connections) return 10000;
    start(links[turn]);
    turn = (turn + 1) % connections;
    due_at -= log(1 - drand48()) / rate;
  }
  for (int i = 0; i < connections; i++) flush_out(links[i]);
  return more() ? (due_at - at) * 1e3 : 10000;
}
static int count_block(const unsigned char *answer, size_t size) {
  static const char id[] = "x-correlation-id\x20"; /* as grpcio writes it: each call has 32 letters of its own */
  unsigned char at[sizeof blocks[0].at], *found;
  if (size > sizeof at) { other_blocks++; return 0; }
  memcpy(at, answer, size);
  if ((found = memmem(at, size, id, sizeof id - 1)) && found + sizeof id - 1 + 32 <= at + size)
    memset(found + sizeof id - 1, '0', 32);
  for (int i = 0; i < block_count; i++)
    if (blocks[i].size == size && !memcmp(blocks[i].at, at, size)) { blocks[i].count++; return 1; }
  if (block_count == BLOCKS) { other_blocks++; return 0; }
  memcpy(blocks[block_count].at, at, size);
  blocks[block_count].size = size;
  blocks[block_count++].count = 1;
  return 1;
}
static void handle(Link *l, int kind, int flags, uint32_t id, const unsigned char *at, size_t size) {
  if (kind == SETTINGS && !(flags & 1)) {
    for (size_t i = 0; i + 6 <= size; i += 6)
      if (at[i + 1] == 4) {
        int64_t change = (int64_t)u32(at + i + 2) - l->first_window;
        l->first_window += change;
        for (int p = 0; p < l->pending_count; p++) l->streams[(l->pending[p] >> 1) % STREAMS].window += change;
      }
    frame(l, SETTINGS, 1, 0, "", 0);
    pump_pending(l);
  } else if (kind == PING && !(flags & 1)) frame(l, PING, 1, 0, at, size);
  else if (kind == WINDOW_UPDATE) {
    if (!id) l->window += u32(at);
    else if (l->streams[(id >> 1) % STREAMS].id == id) l->streams[(id >> 1) % STREAMS].window += u32(at);
    pump_pending(l);
  } else if (kind == GOAWAY) die("the server said GOAWAY");
  if (kind != DATA && kind != HEADERS && kind != RST_STREAM) return;
  Stream *s = &l->streams[(id >> 1) % STREAMS];
  if (!s->active || s->id != id) { if (kind == DATA) l->taken += size; return; }
  if (kind == RST_STREAM) { finish(l, s, 0); return; }
  if (kind == DATA) {
    l->taken += size;
    s->answered += size;
    if (s->sampled) put(&s->answer, at, size);
    if (flags & 1) { http_status[s->status_ok ? 200 : 0]++; finish(l, s, s->status_ok); }
  } else {
    if (!(flags & 4)) die("a header block in parts");
    if (!s->headers_seen++) {
      size_t i = 0;
      while (i < size && (at[i] & 0xE0) == 0x20) i++;
      s->status_ok = i < size && at[i] == 0x88;
    }
    if (flags & 1) {
      count_block(at, size);
      finish(l, s, s->answered > 0);
    }
  }
  if (l->taken > 1u << 30) {
    unsigned char grant[4] = {l->taken >> 24, l->taken >> 16, l->taken >> 8, l->taken};
    frame(l, WINDOW_UPDATE, 0, 0, grant, 4);
    l->taken = 0;
  }
}
/* One HTTP/1.1 answer at the start of the buffer: its size, or 0 while it is not complete. */
static size_t h1_answer(Link *l, int *status, size_t *body_at) {
  Bytes *b = &l->in;
  unsigned char *end = memmem(b->at, b->size, "\r\n\r\n", 4);
  if (!end) return 0;
  size_t head = end - b->at + 4, length = 0;
  *status = atoi((char *)b->at + 9);
  *body_at = head;
  int chunked = 0;
  for (unsigned char *line = b->at; line < end;) {
    if (!strncasecmp((char *)line, "content-length:", 15)) length = strtoul((char *)line + 15, 0, 10);
    if (!strncasecmp((char *)line, "transfer-encoding: chunked", 26)) chunked = 1;
    line = (unsigned char *)memmem(line, end + 2 - line, "\r\n", 2) + 2;
  }
  if (!chunked) return b->size >= head + length ? head + length : 0;
  size_t at = head;
  for (;;) {
    unsigned char *line = memmem(b->at + at, b->size - at, "\r\n", 2);
    if (!line) return 0;
    size_t part = strtoul((char *)b->at + at, 0, 16);
    at = line - b->at + 2 + part + 2;
    if (at > b->size) return 0;
    if (!part) return at;
  }
}
static void receive(Link *l) {
  for (;;) {
    if (l->in.room - l->in.size < 1 << 17) {
      l->in.room = l->in.room * 2 + (1 << 18);
      l->in.at = realloc(l->in.at, l->in.room);
    }
    ssize_t n = recv(l->fd, l->in.at + l->in.size, l->in.room - l->in.size, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
    if (n <= 0) die("the server closed a connection");
    l->in.size += n;
    if ((size_t)n < (1 << 17)) break;
  }
  size_t at = 0;
  if (h1) {
    int status;
    size_t body, size;
    while (l->in.size && (size = h1_answer(l, &status, &body))) {
      Stream *s = &l->streams[((l->next_id - 2) >> 1) % STREAMS];
      http_status[status < 600 && status > 0 ? status : 0]++;
      s->answer.size = 0;
      if (s->sampled) put(&s->answer, l->in.at + body, size - body);
      finish(l, s, status == 200);
      memmove(l->in.at, l->in.at + size, l->in.size - size);
      l->in.size -= size;
    }
    return;
  }
  while (l->in.size - at >= 9) {
    unsigned char *p = l->in.at + at;
    size_t size = (size_t)p[0] << 16 | p[1] << 8 | p[2];
    if (l->in.size - at < 9 + size) break;
    handle(l, p[3], p[4], u32(p + 5) & 0x7fffffff, p + 9, size);
    at += 9 + size;
  }
  memmove(l->in.at, l->in.at + at, l->in.size - at);
  l->in.size -= at;
}
static Link *open_link(int port) {
  Link *l = calloc(1, sizeof *l);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  l->fd = socket(AF_INET, SOCK_STREAM, 0);
  int one = 1;
  setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(l->fd, (struct sockaddr *)&to, sizeof to)) die("nobody listens");
  fcntl(l->fd, F_SETFL, O_NONBLOCK);
  l->streams = calloc(STREAMS, sizeof(Stream));
  l->pending = calloc(STREAMS, sizeof(uint32_t));
  l->next_id = 1;
  l->window = l->first_window = 65535;
  if (!h1) {
    /* No table for headers, no push, windows as wide as they get. */
    static const unsigned char settings[] = {0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff};
    static const unsigned char grant[] = {0x7f, 0xff, 0, 0};
    put(&l->out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    frame(l, SETTINGS, 0, 0, settings, sizeof settings);
    frame(l, WINDOW_UPDATE, 0, 0, grant, 4);
  }
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = l};
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, l->fd, &e);
  return l;
}
static Bytes whole_file(const char *path) {
  Bytes b = {0};
  FILE *f = fopen(path, "rb");
  if (!f) die(path);
  char part[1 << 16];
  for (size_t n; (n = fread(part, 1, sizeof part, f));) put(&b, part, n);
  fclose(f);
  return b;
}

int main(int argc, char **argv) {
  if (argc != 10 && argc != 11) die("usage: see the top of load.c");
  int port = atoi(argv[1]), in_flight = atoi(argv[3]), connections = atoi(argv[4]);
  h1 = !strcmp(argv[2], "h1");
  double seconds = atof(argv[5]);
  rate = argc == 11 ? atof(argv[10]) : 0;
  Bytes file = whole_file(argv[6]);
  if (!h1) header_block = whole_file(argv[7]);
  sample_every = atoi(argv[9]);
  memcpy(&request_count, file.at, 4);
  requests = calloc(request_count, sizeof *requests);
  sizes = calloc(request_count, sizeof *sizes);
  size_t at = 4;
  for (uint32_t i = 0; i < request_count; i++) {
    memcpy(&sizes[i], file.at + at, 4);
    requests[i] = file.at + at + 4;
    at += 4 + sizes[i];
  }
  char path[4096];
  snprintf(path, sizeof path, "%s.answers", argv[8]);
  if (!(answers = fopen(path, "wb"))) die(path);
  epoll_fd = epoll_create1(0);
  in_flight_per_link = h1 ? 1 : in_flight / connections;
  if (h1) connections = in_flight;
  Link **links = calloc(connections, sizeof *links);
  for (int i = 0; i < connections; i++) links[i] = open_link(port);
  row_limit = seconds > 0 ? 0 : request_count;
  double began = due_at = now();
  stop_at = began + seconds;
  for (int i = 0; i < connections; i++) fill(links[i]);
  struct epoll_event events[64];
  for (;;) {
    int open = 0;
    for (int i = 0; i < connections; i++) open += links[i]->in_flight;
    if (!open && !more()) break;
    double wait_ms = rate > 0 ? start_due(links, connections) : 10000;
    if (wait_ms < 0) wait_ms = 0;
    struct timespec wait = {wait_ms / 1e3, fmod(wait_ms, 1e3) * 1e6};
    int n = epoll_pwait2(epoll_fd, events, 64, &wait, 0);
    if (n == 0 && wait_ms == 10000) die("no answer for 10 s");
    for (int i = 0; i < n; i++) {
      Link *l = events[i].data.ptr;
      if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(l);
      fill(l);
    }
  }
  double took = now() - began;
  FILE *out = fopen(argv[8], "wb");
  fprintf(out, "{\"seconds\": %.6f, \"finished\": %zu, \"failed\": %lu, \"other\": %lu, \"http\": {", took, latency_count,
          (unsigned long)failed, (unsigned long)other_blocks);
  const char *comma = "";
  for (int i = 0; i < 600; i++)
    if (http_status[i]) { fprintf(out, "%s\"%d\": %lu", comma, i, (unsigned long)http_status[i]); comma = ", "; }
  fprintf(out, "}, \"trailers\": {");
  for (int i = 0; i < block_count; i++) {
    fprintf(out, "%s\"", i ? ", " : "");
    for (size_t k = 0; k < blocks[i].size; k++) fprintf(out, "%02x", blocks[i].at[k]);
    fprintf(out, "\": %lu", (unsigned long)blocks[i].count);
  }
  fprintf(out, "}}\n");
  fwrite(latencies, sizeof(double), latency_count, out);
  fclose(out);
  fclose(answers);
  return 0;
}
