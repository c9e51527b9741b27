// Named steps of the protocol at which a test can let the process die or stand still.
//
// In a normal build `stop_point` is empty and costs nothing. In a build with MPBUFFER_STOP_POINTS
// it calls the hook, if one is set; a forked child inherits its parent's. The hook may end or stop
// the process; it must not throw, and must not use the buffer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace mpbuffer {

// The one list of them.
#define MPBUFFER_ALL_STOP_POINTS(X)                             \
    /* SlotRing::add */                                         \
    X(busy_raised)                                              \
    X(position_taken)                                           \
    X(slot_looked_at)                                           \
    X(claim_taken)                                              \
    X(field_copied)                                             \
    X(leaf_in_stored)                                           \
    X(row_committed) /* detail: the row's seq */                \
    X(filled_to_raise)                                          \
    X(filled_raised)                                            \
    /* SourceWriter and SlotRing::put */                        \
    X(source_committed)                                         \
    X(sources_born)                                             \
    X(reference_stored)                                         \
    /* SlotRing::clear, and the first claim after it */         \
    X(clear_priority_reset)                                     \
    X(clear_position_seen)                                      \
    X(clear_before_raised)                                      \
    X(cursor_behind_clear)                                      \
    /* SlotRing::read... */                                     \
    X(row_copied)                                               \
    /* copy_frames, SlotRing::retire */                         \
    X(frame_copied)                                             \
    X(rows_to_retire)                                           \
    X(rows_retired)                                             \
    /* Role and Learner */                                      \
    X(role_taken)                                               \
    X(take_over_slot)                                           \
    X(leaf_stored)                                              \
    X(lap_stored)                                               \
    X(fold_to_refresh)                                          \
    X(update_looked_at)                                         \
    X(update_leaf_stored)                                       \
    X(update_to_refresh)                                        \
    X(draw_again_leaf_zeroed)                                   \
    X(line_odd)                                                 \
    /* SharedSegment and ReplayBuffer: create, attach, close */ \
    X(segment_made)                                             \
    X(segment_present)                                          \
    X(segment_allocated)                                        \
    X(segment_written)                                          \
    X(segment_linked)                                           \
    X(attach_opened)                                            \
    X(attach_present)                                           \
    X(handle_left)                                              \
    X(segment_unmapped)                                         \
    X(last_one_out)                                             \
    X(last_unlinked)                                            \
    /* ProcessTable::enroll */                                  \
    X(number_locked)                                            \
    X(epoch_raised)                                             \
    X(process_described)

#define MPBUFFER_NAME_OF_ENUMERATOR(name) name,
#define MPBUFFER_TEXT_OF_NAME(name) #name,
enum class StopPoint : unsigned { MPBUFFER_ALL_STOP_POINTS(MPBUFFER_NAME_OF_ENUMERATOR) };
constexpr const char* stop_point_names[] = {MPBUFFER_ALL_STOP_POINTS(MPBUFFER_TEXT_OF_NAME)};
#undef MPBUFFER_NAME_OF_ENUMERATOR
#undef MPBUFFER_TEXT_OF_NAME
constexpr std::size_t stop_point_count = std::size(stop_point_names);

#ifdef MPBUFFER_STOP_POINTS
using StopPointHook = void (*)(StopPoint point, std::uint64_t detail);
inline StopPointHook stop_point_hook = nullptr;
inline void stop_point(StopPoint point, std::uint64_t detail = 0) {
    if (stop_point_hook != nullptr) stop_point_hook(point, detail);
}
#else
constexpr void stop_point(StopPoint, std::uint64_t = 0) {}
#endif

}  // namespace mpbuffer
