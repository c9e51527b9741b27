// The row: its fields side by side in one record, in the order given, each at a multiple of its
// alignment. What a field's values mean (its dtype) is for those who write and read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mpbuffer {

struct Field {
    std::string name;
    std::size_t bytes;      // of one row's value
    std::size_t alignment;  // a power of two
    std::size_t offset = 0;
};

class Schema {
  public:
    // Lays the fields out. InvalidArgument if there are none, a name comes twice, an alignment is
    // no power of two, or a row would be larger than 2^40 bytes.
    explicit Schema(std::vector<Field> fields);

    const std::vector<Field>& fields() const { return fields_; }
    // Without padding behind the last field.
    std::size_t row_bytes() const { return row_bytes_; }

  private:
    std::vector<Field> fields_;
    std::size_t row_bytes_ = 0;
};

}  // namespace mpbuffer
