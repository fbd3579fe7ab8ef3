#pragma once

// llama_kv_cache with merged layers (Liu et al. 2024, arXiv 2405.14366).
//
// It keeps these invariants:
//   - Cells, positions, sequences and masks are llama.cpp's. A group is one layer's storage seen by several layers, so every
//     sequence operation is the base class's own.
//   - A cell's direction and magnitudes are written together, when the K and V of the deepest layer are known. Until then the
//     current tokens come from the graph, never from the cache.
//   - A token in a retained slot has its merged entry too, so a slot may lose its token at any time.
//   - If a group has basis matrices, everything in it is stored after they are applied: directions, pools, and the attention's queries and
//     results.
//   - The position of a coded cell is its base, which it is coded relative to, plus its offset. A shift moves bases, not offsets.
//   - All memory is allocated once, in the constructor. A state that does not fit this cache is refused before anything is
//     changed.
//
// The base class also stores, reads, shifts and saves the layers that are not merged, each with its own types. It would allocate
// one type for all of them, so they are allocated here (llama-kv-cache-minicache-plain.cpp). In main memory they attend by our
// kernels.
//
// llama-kv-cache-minicache-create.cpp decides whether a context gets this cache, llama-kv-cache-minicache.cpp constructs it and sets
// the graph's inputs, -memory.cpp allocates the groups, -plain.cpp has the layers that are not merged, -shift.cpp stream copies and position shifts, and -state.cpp saved states.

#include "llama-kv-cache.h"
#include "llama-minicache-groups.h"
#include "llama-minicache-rope.h"

#include <algorithm>

struct minicache_group {
    minicache_layers layers;

    int64_t d_k;
    int64_t d_v;
    int64_t n_head_kv;

    // of a coded group
    minicache_code_shape    shape;
    minicache_group_layouts layouts;
    ggml_tensor *           codec;  // I8 [minicache_codec_offsets.size]; null without codes

    // Basis matrices of each layer, F32 [d, d, n_head_kv]; null if its vectors are merged without one. basis_o is basis_v
    // transposed, for the attention's result. Groups with basis matrices have two layers.
    ggml_tensor * basis_k[MINICACHE_CODE_LAYERS];
    ggml_tensor * basis_v[MINICACHE_CODE_LAYERS];
    ggml_tensor * basis_o[MINICACHE_CODE_LAYERS];

    // Streams are dimension 2 of all of these. In a coded group dir_k and dir_v are codes, I8 [shape.bytes_k or
    // bytes_v, kv_size, n_stream], which contain the magnitudes; averages have no magnitudes. The n_slot slots include the
    // window's, see ggml-minicache.h.
    ggml_tensor * dir_k;   // cache type of K  [d_k*n_head_kv, kv_size, n_stream]
    ggml_tensor * dir_v;   // cache type of V  [d_v*n_head_kv, kv_size, n_stream]
    ggml_tensor * mag;     // f16              [4*n_head_kv,   kv_size, n_stream]: |K_a|, |K_b|, |V_a|, |V_b|, or null
    ggml_tensor * slots;   // i32              [2, n_slot + GGML_MINICACHE_SLOT_STATS, n_stream]
    ggml_tensor * pool_k;  // pool type        [d_k*n_head_kv, n_slot, n_stream, n_layer], null without a pool
    ggml_tensor * pool_v;  // pool type        [d_v*n_head_kv, n_slot, n_stream, n_layer]

    int32_t first() const { return layers.front(); }

    int32_t n_layer() const { return (int32_t) layers.size(); }

    // the layer's number in the group, counted from 0
    int32_t side_of(int32_t il) const { return (int32_t) (std::find(layers.begin(), layers.end(), il) - layers.begin()); }

    // all tensors that are not null, without the codec and the basis matrices
    std::vector<ggml_tensor *> tensors() const;

    // the basis matrices that are not null
    std::vector<ggml_tensor *> basis_tensors() const;

    // the tensors that have a row for each cell
    std::vector<ggml_tensor *> cell_tensors() const;

    // both pools, or none
    std::vector<ggml_tensor *> pools() const;

    bool is_coded() const { return codec != nullptr; }

    // what the plan, which must have this group, says of it
    const minicache_plan_group & source_in(const minicache_plan & plan) const;
};

class llama_kv_cache_minicache : public llama_kv_cache {
  public:
    // Returns null if the settings do not ask for MiniCache. Throws std::invalid_argument if they do not fit the model or the
    // context.
    //   filter: whether a layer belongs to this memory; null: all do
    //   reuse:  whose K and V a layer reads that keeps none, -1 for a layer that keeps them; null: all do
    static llama_kv_cache_minicache * create(const llama_model & model, const llama_memory_params & params,
        const llama_cparams & cparams, const layer_filter_cb & filter, const layer_reuse_cb & reuse = nullptr);

    // Warns if MiniCache was asked for and the memory that was created is of another kind. If the settings are strict, it frees
    // `created` and throws std::invalid_argument instead.
    static void check_created(llama_memory_i * created, const llama_model & model, const llama_memory_params & params);

    // llama_kv_cache

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    // False with basis matrices: a shift turns K differently in each layer's basis, so what two layers share cannot be turned
    // for both. False for bf16, which llama.cpp's RoPE does not support.
    bool get_can_shift() const override;

    bool update(llama_context * lctx, bool do_shift, const stream_copy_info & sc_info) override;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read(llama_io_read_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    // llama_kv_cache_minicache specific API

    // Reads a saved state to its end, and changes nothing. Throws std::runtime_error where state_read() would refuse it.
    void check_state(llama_io_read_i & io, llama_seq_id seq_id) const;

    // The model's fingerprint as a number, 0 for a model without weights.
    uint64_t get_model_hash() const { return model_hash; }

    const llama_hparams & get_hparams() const { return hparams; }

    // the number of the layer's group, -1 for a plain layer
    int32_t find_group(int32_t il) const;

    // the layer whose K and V a layer reads: itself, but for layers that keep none
    int32_t source_of(int32_t il) const { return source_of_layer[il]; }

    const minicache_group & get_group(int32_t ig) const { return groups[ig]; }

    const std::vector<minicache_group> & get_groups() const { return groups; }
    const minicache_settings &           get_settings() const { return settings; }
    const minicache_grouping &           get_grouping() const { return grouping; }

    ggml_type get_type_k() const { return cache_type_k; }
    ggml_type get_type_v() const { return cache_type_v; }

    // types of a layer that is not merged
    minicache_layer_types get_plain_types(int32_t il) const;

    // whether a layer that is not merged attends by our op instead of llama.cpp's flash attention
    bool attends_by_own_op(int32_t il) const { return own_op[il]; }

    // whether the layer's K, or V, is stored after llama.cpp's Hadamard rotation, as quantized types are
    bool rotates_k(int32_t il) const;
    bool rotates_v(int32_t il) const;

    int32_t  get_block() const { return block; }
    int32_t  get_window() const { return window; }
    int64_t  get_n_slot() const;  // slots of a stream: the window's and the blocks'
    int32_t  get_rope_block() const { return rope_block; }
    uint64_t get_plan_hash() const { return plan_hash; }
    bool     is_coded() const { return mode == LLAMA_MINICACHE_MODE_CODE; }
    bool     is_observed() const { return settings.observe; }

    // why the CPU computes what a device should compute; "" if nothing fell back
    const std::string & get_fallback() const { return fallback; }

    llama_minicache_mode get_mode() const { return mode; }

    bool is_cell_used(uint32_t strm, uint32_t cell) const { return !v_cells[strm].is_empty(cell); }

    // Records the offsets of the ubatch's cells. llama.cpp keeps no offsets, and we first see the ubatch's positions when the
    // graph's inputs are set.
    void set_offsets(const llama_ubatch & ubatch, const slot_info & sinfo) const;

    // dst I32 [n_kv, n_stream, 1 or 2]: what each cell holds for the ubatch at sinfo, then its base, see ggml_minicache_index()
    void set_input_cells(ggml_tensor * dst, const slot_info & sinfo) const;

    // dst I32 [n_tokens]: the base of each token of the ubatch at sinfo
    void set_input_bases(ggml_tensor * dst, const slot_info & sinfo) const;

    // dst I32 [n_slot*n_stream]: how far to shift the K of each slot's token
    void set_input_slot_shift(ggml_tensor * dst, const minicache_group & group) const;

    // a copy of the group's slots, stream by stream
    std::vector<int32_t> read_slots(const minicache_group & group) const;

  protected:
    ggml_cgraph * build_graph_shift(llm_graph_result * res, llama_context * lctx) const override;

    void state_write_data(llama_io_write_i & io, const cell_ranges_t & cr) const override;
    bool state_read_data(llama_io_read_i & io, uint32_t strm, uint32_t cell_count, const slot_info & sinfo) override;

  private:
    llama_kv_cache_minicache(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
        const minicache_layers & kept, const minicache_settings & settings, const minicache_grouping & grouping);

    void add_plain_layers(const minicache_settings & given, const minicache_layers & kept, bool offload);
    bool takes_own_op(ggml_backend_dev_t dev, int32_t il, const minicache_layer_types & types);
    void note_fallback(const std::string & what);
    void add_groups();
    void add_readers(const layer_reuse_cb & reuse, const layer_filter_cb & filter);

    // Sets the shapes of the groups' codes. Returns how RoPE turns the K of each group.
    std::vector<minicache_rope_turn> add_shapes(const minicache_plan & plan, const llama_cparams & cparams);

    ggml_backend_buffer_type_t buffer_type_for(const minicache_group & group, bool offload);

    void add_tensors(minicache_group & group, ggml_context * ctx) const;
    void add_plan_tensors(minicache_group & group, const minicache_plan & plan, ggml_context * ctx) const;
    void allocate(const minicache_plan * plan, bool offload);
    void write_codecs(const minicache_plan & plan, const std::vector<minicache_rope_turn> & turns);
    void write_basis_matrices(const minicache_plan & plan);
    void init_rotation();

    // A saved state may have any numbers in their places, so their difference may wrap; nothing is addressed by it.
    int32_t base_of(uint32_t strm, uint32_t cell) const {
        return (int32_t) ((uint32_t) v_cells[strm].pos_get(cell) - (uint32_t) offsets[strm][cell]);
    }

    // types of a layer's rows; F32 for codes
    minicache_layer_types kept_types(int32_t il) const;

    // Throws std::runtime_error if there is not enough memory.
    static ggml_backend_buffer_t allocate_tensors(ggml_context * ctx, ggml_backend_buffer_type_t buft, bool no_alloc);

    std::string describe() const;

    void write_retained(llama_io_write_i & io, const minicache_group & group, const cell_ranges_t & cr) const;
    void read_retained(llama_io_read_i & io, const minicache_group & group, uint32_t strm, const slot_info & sinfo);

    // What a saved state has behind its header, for the base class. Throws as check_state() does.
    std::vector<uint8_t> read_checked(llama_io_read_i & io, llama_seq_id seq_id) const;

    // Throws if the cells of a saved state do not fit.
    void check_room(const std::vector<uint32_t> & cell_counts, llama_seq_id seq_id) const;

    const minicache_settings settings;  // without the plan, whose matrices are in the cache's tensors by then
    const minicache_grouping grouping;

    const llama_minicache_mode mode;

    const int32_t  rope_block;
    const uint64_t model_hash;
    const uint64_t plan_hash;  // 0 without a plan

    const ggml_type cache_type_k;  // of directions, and of plain layers for which a plan names no type
    const ggml_type cache_type_v;
    const int32_t   block;   // cells per retained slot, 0 without a pool
    const int32_t   window;  // first and latest tokens of a stream that are kept unmerged

    std::vector<minicache_group> groups;
    std::vector<int32_t>         group_of_layer;
    std::vector<int32_t>         source_of_layer;
    std::vector<bool>            own_op;  // by layer
    std::string                  fallback;

    // Codecs and basis matrices outlive a clearing of the cache, so they are not among the base class's buffers.
    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> plan_bufs;

    // [n_stream][kv_size] position of a cell's token minus the base that its K is coded relative to; empty without codes
    mutable std::vector<std::vector<int32_t>> offsets;
};

// What the cache takes, beside a plain one of f16, in one line for people.
std::string minicache_describe_saving(const llama_model & model, const llama_kv_cache_minicache & kv);
