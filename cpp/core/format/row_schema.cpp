#include "format/row_schema.hpp"

#include <algorithm>
#include <bit>
#include <set>

#include "base/error.hpp"
#include "format/ring_records.hpp"

namespace mpbuffer {

namespace {
constexpr std::size_t max_row_bytes = std::size_t{1} << 40;
}

Schema::Schema(std::vector<Field> fields) : fields_(std::move(fields)) {
    if (fields_.empty()) {
        throw InvalidArgument("cannot lay out a row: it has no fields, at least one is needed");
    }
    std::set<std::string> names;
    for (Field& field : fields_) {
        if (!names.insert(field.name).second) {
            throw InvalidArgument("cannot lay out a row: field '" + field.name + "' comes twice");
        }
        if (!std::has_single_bit(field.alignment)) {
            throw InvalidArgument("cannot lay out field '" + field.name + "': alignment " +
                                  std::to_string(field.alignment) + " is not a power of two");
        }
        field.offset = (row_bytes_ + field.alignment - 1) & ~(field.alignment - 1);
        if (field.bytes > max_row_bytes || field.offset > max_row_bytes - field.bytes) {
            throw InvalidArgument("cannot lay out field '" + field.name +
                                  "': the row would be larger than 2^40 bytes");
        }
        row_bytes_ = field.offset + field.bytes;
    }
}

}  // namespace mpbuffer
