/* A pool of threads that sleep between calls, for loops whose turns are independent of one another.
 *
 * torch brings its own OpenMP runtime, and a second one in the process would compete with it for the cores.
 */

#ifndef TORCHLASSO_POOL_H
#define TORCHLASSO_POOL_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { MOST_WORKERS = 255 };

struct loop {
    void (*turn)(void *context, int64_t index);
    void *context;
    int64_t count;
    atomic_int_fast64_t next;
};

static struct {
    pthread_mutex_t busy; /* held for a whole loop: one at a time */
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake, done;
    struct loop *loop;
    int workers, places, running; /* threads that exist, may still join, have joined */
    int guarded;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static void take_turns(struct loop *loop) {
    for (;;) {
        int64_t index = atomic_fetch_add_explicit(&loop->next, 1, memory_order_relaxed);
        if (index >= loop->count) return;
        loop->turn(loop->context, index);
    }
}

static void *worker(void *unused) {
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.places == 0) pthread_cond_wait(&pool.wake, &pool.lock);
        pool.places--;
        pool.running++;
        struct loop *loop = pool.loop;
        pthread_mutex_unlock(&pool.lock);
        take_turns(loop);
        pthread_mutex_lock(&pool.lock);
        if (--pool.running == 0) pthread_cond_signal(&pool.done);
    }
    return unused;
}

/* A child process has the memory of its parent and none of its threads. */
static void before_fork(void) { pthread_mutex_lock(&pool.busy); }
static void after_fork(void) { pthread_mutex_unlock(&pool.busy); }
static void in_child(void) {
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.workers = pool.places = pool.running = 0;
}

static void grow(int workers) {
    if (!pool.guarded) pool.guarded = pthread_atfork(before_fork, after_fork, in_child) == 0;
    if (!pool.guarded || pool.workers >= workers) return;
    sigset_t all, before;
    sigfillset(&all); /* signals are for the threads of the host program */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    while (pool.workers < workers && pthread_create(&thread, &attributes, worker, NULL) == 0) pool.workers++;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Run turn(context, index) for every index below count.  A loop that finds the pool busy runs alone. */
static void pool_run(void (*turn)(void *, int64_t), void *context, int64_t count, int threads) {
    struct loop loop = {turn, context, count, 0};
    if (threads > count) threads = (int)count;
    if (threads <= 1 || pthread_mutex_trylock(&pool.busy) != 0) {
        take_turns(&loop);
        return;
    }
    grow(threads - 1 < MOST_WORKERS ? threads - 1 : MOST_WORKERS);
    pthread_mutex_lock(&pool.lock);
    pool.loop = &loop;
    pool.places = threads - 1 < pool.workers ? threads - 1 : pool.workers;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    take_turns(&loop);
    pthread_mutex_lock(&pool.lock);
    pool.places = 0; /* who has not woken up yet is not waited for */
    while (pool.running > 0) pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.busy);
}

#endif
