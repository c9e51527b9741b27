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

enum class StopPoint : unsigned {
    // SlotRing::add
    busy_raised,
    position_taken,
    slot_looked_at,
    claim_taken,
    field_copied,
    leaf_in_stored,
    row_committed,  // detail: the row's seq
    filled_to_raise,
    filled_raised,
    // SlotRing::clear, and the first claim after it
    clear_priority_reset,
    clear_position_seen,
    clear_before_raised,
    cursor_behind_clear,
    // SlotRing::read...
    row_copied,
    // Learner
    role_taken,
    take_over_slot,
    leaf_stored,
    leaf_seq_stored,
    fold_to_refresh,
    update_looked_at,
    update_leaf_stored,
    update_to_refresh,
    draw_again_leaf_zeroed,
    line_odd,
    // SharedSegment and ReplayBuffer: create, attach, close
    segment_made,
    segment_present,
    segment_allocated,
    segment_written,
    segment_linked,
    attach_opened,
    attach_present,
    handle_left,
    segment_unmapped,
    last_one_out,
    last_unlinked,
    // ProcessTable::enroll
    number_locked,
    epoch_raised,
    process_described,
};

constexpr const char* stop_point_names[] = {
    "busy_raised",
    "position_taken",
    "slot_looked_at",
    "claim_taken",
    "field_copied",
    "leaf_in_stored",
    "row_committed",
    "filled_to_raise",
    "filled_raised",
    "clear_priority_reset",
    "clear_position_seen",
    "clear_before_raised",
    "cursor_behind_clear",
    "row_copied",
    "role_taken",
    "take_over_slot",
    "leaf_stored",
    "leaf_seq_stored",
    "fold_to_refresh",
    "update_looked_at",
    "update_leaf_stored",
    "update_to_refresh",
    "draw_again_leaf_zeroed",
    "line_odd",
    "segment_made",
    "segment_present",
    "segment_allocated",
    "segment_written",
    "segment_linked",
    "attach_opened",
    "attach_present",
    "handle_left",
    "segment_unmapped",
    "last_one_out",
    "last_unlinked",
    "number_locked",
    "epoch_raised",
    "process_described",
};
constexpr std::size_t stop_point_count = std::size(stop_point_names);
static_assert(stop_point_count == static_cast<std::size_t>(StopPoint::process_described) + 1);

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
