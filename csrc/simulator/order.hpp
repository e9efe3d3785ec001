// Which accesses of a block's threads come before which: vector clocks (mode "race").
//
// A thread's time goes on whenever others may learn of what it did. known[u][t] is the time of thread t up to which all
// its accesses come before what u does next; an mbarrier counts as one more thread, whose time is its completed phases.
// Kernels that use neither mbarriers nor named barriers need no clocks: the checks count barriers of the block apart.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "barrier.hpp"
#include "runtime.hpp"

namespace simulator {

class Clocks {
public:
    using Times = std::vector<uint32_t>;

    // Of all blocks of a cluster: their threads by slot, their barriers by rank and index.
    void start(int threads, int blocks) {
        first_barrier = threads;
        columns = threads + blocks * BARRIERS_MAX;
        active = uses_barriers;
        known.assign(active ? threads : 0, Times(columns, 0));
        times.assign(threads, 1);
        fences.assign(active ? threads : 0, {});
        releases.clear();
        learnt.assign((threads + 31) / 32, 0);
    }

    bool knows(int thread, int other, uint32_t time) const { return known[thread][other] >= time; }
    int barrier_thread(int barrier) const { return first_barrier + barrier; }

    void arrive(int thread, int barrier) {
        if (static_cast<int>(releases.size()) <= barrier) releases.resize(barrier + 1, {Times(columns, 0), Times(columns, 0)});
        Times& arriving = releases[barrier].arriving;
        join(arriving, known[thread]);
        arriving[thread] = times[thread]++;
    }
    void complete(int barrier, uint32_t completed) {
        if (static_cast<int>(releases.size()) <= barrier) releases.resize(barrier + 1, {Times(columns, 0), Times(columns, 0)});
        Release& release = releases[barrier];
        join(release.completed, release.arriving);
        release.completed[barrier_thread(barrier)] = completed;
    }
    void wait(int thread, int barrier) {
        if (static_cast<int>(releases.size()) <= barrier) return;
        join(known[thread], releases[barrier].completed);
        learnt[thread / 32] = 1;
    }
    void meet(const int* numbers, int count) {
        Times all(columns, 0);
        for (int i = 0; i < count; ++i) {
            join(all, known[numbers[i]]);
            all[numbers[i]] = times[numbers[i]]++;
        }
        for (int i = 0; i < count; ++i) {
            known[numbers[i]] = all;
            learnt[numbers[i] / 32] = 1;
        }
    }
    // Lanes of one warp. Where none has learnt of others since all of them met, only their own times are news.
    void meet_warp(int warp, uint32_t mask, uint32_t alive) {
        const int first = warp * 32;
        if (mask != alive || learnt[warp]) {
            int numbers[32], count = 0;
            for (int lane = 0; lane < 32; ++lane)
                if (mask >> lane & 1) numbers[count++] = first + lane;
            meet(numbers, count);
            learnt[warp] = mask != alive;
            return;
        }
        for (int lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1)
                for (int other = 0; other < 32; ++other)
                    if (mask >> other & 1) known[first + lane][first + other] = times[first + other];
        for (int lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1) ++times[first + lane];
    }

    uint32_t time(int thread) const { return times[thread]; }
    void fence(int thread) { fences[thread].push_back(times[thread]++); }
    // Whether `other` has made a fence since its access at `time`, and before what `thread` knows of.
    bool knows_fence(int thread, int other, uint32_t time) const {
        const uint32_t known_time = thread == other ? times[other] : known[thread][other];
        const auto fence = std::lower_bound(fences[other].begin(), fences[other].end(), time);
        return fence != fences[other].end() && *fence < known_time;
    }

    bool active = false;  // whether anything but barriers of the block and operations of warps orders threads

private:
    struct Release {
        Times arriving, completed;
    };
    static void join(Times& into, const Times& other) {
        for (size_t i = 0; i < into.size(); ++i) into[i] = into[i] < other[i] ? other[i] : into[i];
    }

    int columns = 0, first_barrier = 0;
    std::vector<Times> known;
    Times times;
    std::vector<Times> fences;  // of each thread, the times at which it made one
    std::vector<Release> releases;
    std::vector<char> learnt;  // of each warp: whether a lane may know what the others do not
};

}  // namespace simulator
