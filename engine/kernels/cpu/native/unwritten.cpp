#include "unwritten.h"

#include "memory.h"
#include "mlx/allocator.h"
#include "mlx/backend/common/utils.h"

namespace genserve {

namespace {

mx::array bytes_of(size_t size) { return mx::array(mx::allocator::malloc(size), {1}, mx::uint8); }

// Where MLX keeps the size of a buffer: before its numbers. One made for a GPU does not, which gives null.
size_t* size_of(const mx::array& a) {
  mx::allocator::Buffer buffer = a.buffer();
  auto* size = static_cast<size_t*>(buffer.ptr());
  return buffer.raw_ptr() == size + 1 && *size == a.buffer_size() ? size : nullptr;
}

// MLX gives the memory of an array to its successor only if that is about as large. So it is not to know of the bytes
// that lie before an array; they leave its count together with a buffer that is said to have been so large.
void conceal(size_t* size, size_t bytes) {
  const mx::array smallest = bytes_of(1);
  *size -= bytes;
  *size_of(smallest) += bytes;
}

}  // namespace

mx::array unwritten_like(const mx::array& a) {
  mx::array part(a.shape(), a.dtype(), nullptr, {});
  const bool is_large = part.nbytes() >= LARGE_PAGE;
  const mx::array whole = bytes_of(part.nbytes() + (is_large ? LARGE_PAGE : 0));
  int64_t gap = 0;
  if (size_t* size = size_of(whole); is_large && size != nullptr) {
    const auto* begin = whole.data<uint8_t>();
    gap = static_cast<int64_t>(next_large_page(begin) - reinterpret_cast<uintptr_t>(begin));
    conceal(size, LARGE_PAGE);
  }
  const auto [data_size, is_row_contiguous, is_col_contiguous] = mx::check_contiguity(part.shape(), part.strides());
  part.copy_shared_buffer(
      whole, part.strides(), {true, is_row_contiguous, is_col_contiguous}, data_size, gap / part.itemsize());
  part.set_status(mx::array::Status::available);
  return part;
}

}  // namespace genserve
