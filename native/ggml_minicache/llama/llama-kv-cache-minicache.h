#pragma once

// llama_kv_cache with merged layers (Liu et al. 2024, arXiv 2405.14366).
//
// Invariants it keeps:
//   - cells, positions, sequences and masks are upstream's: a group is one layer's storage seen by several, so every
//     sequence operation is the base class's own;
//   - a cell's direction and magnitudes are written together, after the deepest layer's K and V are known; until then the
//     current tokens come from the graph, never from the cache;
//   - a retained slot holds a token whose merged entry is there too: a slot may lose its token at any time;
//   - what is merged is in the group's bases, where it has some: directions, pools and the attention's queries and results;
//   - a coded cell's position is the base it is coded relative to plus its offset; positions move, offsets stay;
//   - all memory is allocated here, once; a state that does not fit this cache is refused before anything is changed.
//
// Layers that are not merged are the base class's as well, each with its own types: it stores, reads, shifts and saves them. It
// allocates one type for all, so the allocation is done here (llama-kv-cache-minicache-plain.cpp). In main memory they attend by
// our kernels.

#include "llama-kv-cache.h"
#include "llama-minicache-groups.h"
#include "llama-minicache-rope.h"

#include <algorithm>

struct minicache_group {
    minicache_layers layers;

    int64_t d_k;
    int64_t d_v;
    int64_t n_head_kv;

    minicache_code_shape shape;  // of a coded group
    ggml_tensor *        codec;  // of a coded group, else null: I8 [minicache_codec_offsets.size]

    // Of each layer, F32 [d, d, n_head_kv]; null where its vectors are merged as they are. basis_o is basis_v transposed, for
    // what attention gives. Groups in bases are of two layers.
    ggml_tensor * basis_k[MINICACHE_CODE_LAYERS];
    ggml_tensor * basis_v[MINICACHE_CODE_LAYERS];
    ggml_tensor * basis_o[MINICACHE_CODE_LAYERS];

    // All have the streams in dimension 2. Codes are I8 [bytes*n_head_kv, kv_size, n_stream] in place of directions, and have
    // their magnitudes within; averages have none. The window's slots are among the n_slot, see ggml-minicache.h.
    ggml_tensor * dir_k;   // cache type of K  [d_k*n_head_kv, kv_size, n_stream]
    ggml_tensor * dir_v;   // cache type of V  [d_v*n_head_kv, kv_size, n_stream]
    ggml_tensor * mag;     // f16              [4*n_head_kv,   kv_size, n_stream]: |K_a|, |K_b|, |V_a|, |V_b|, or null
    ggml_tensor * slots;   // i32              [2, n_slot + GGML_MINICACHE_SLOT_STATS, n_stream]
    ggml_tensor * pool_k;  // pool type        [d_k*n_head_kv, n_slot, n_stream, n_layer], null without a pool
    ggml_tensor * pool_v;  // pool type        [d_v*n_head_kv, n_slot, n_stream, n_layer]

    int32_t first() const { return layers.front(); }

    int32_t n_layer() const { return (int32_t) layers.size(); }

    // the layer's number in the group
    int32_t side_of(int32_t il) const { return (int32_t) (std::find(layers.begin(), layers.end(), il) - layers.begin()); }

    // the tensors there are, but for the codec and the bases
    std::vector<ggml_tensor *> tensors() const;

    // those of the bases that there are
    std::vector<ggml_tensor *> bases() const;

    // those with a row for each cell
    std::vector<ggml_tensor *> cell_tensors() const;

    // the pools there are
    std::vector<ggml_tensor *> pools() const;

    bool is_coded() const { return codec != nullptr; }
};

class llama_kv_cache_minicache : public llama_kv_cache {
  public:
    // null where no MiniCache is asked for
    //   filter: layers that this memory keeps, null for all
    // throws std::invalid_argument where the settings do not fit the model or the context
    static llama_kv_cache_minicache * create(const llama_model & model, const llama_memory_params & params,
        const llama_cparams & cparams, const layer_filter_cb & filter);

    // Says aloud when a MiniCache was asked for and the model's memory cannot be one; throws, and frees `created`, if strict.
    static void check_created(llama_memory_i * created, const llama_model & model, const llama_memory_params & params);

    // llama_kv_cache

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    // Two layers' bases turn by a shift in two ways, so what they share can't be turned for both; upstream has no RoPE of bf16.
    bool get_can_shift() const override;

    bool update(llama_context * lctx, bool do_shift, const stream_copy_info & sc_info) override;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read(llama_io_read_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    // llama_kv_cache_minicache specific API

    // the number of the group that the layer is in, -1 for a plain layer
    int32_t find_group(int32_t il) const;

    const minicache_group & get_group(int32_t ig) const { return groups[ig]; }

    const std::vector<minicache_group> & get_groups() const { return groups; }
    const minicache_settings &           get_settings() const { return settings; }
    const minicache_grouping &           get_grouping() const { return grouping; }

    ggml_type get_type_k() const { return cache_type_k; }
    ggml_type get_type_v() const { return cache_type_v; }

    // of a layer that is not merged
    minicache_layer_types get_plain_types(int32_t il) const;

    // whether a layer that is not merged attends by our op, in place of upstream's flash attention
    bool attends_by_own_op(int32_t il) const { return own_op[il]; }

    // whether the layer's K, or V, is kept as upstream's Hadamard rotation turns it: where its type is quantized
    bool rotates_k(int32_t il) const;
    bool rotates_v(int32_t il) const;

    int32_t  get_block() const { return block; }
    int32_t  get_window() const { return window; }
    int64_t  get_n_slot() const;  // the window's and the blocks'
    int32_t  get_rope_block() const { return rope_block; }
    uint64_t get_plan_hash() const { return plan_hash; }
    bool     is_coded() const { return mode == LLAMA_MINICACHE_MODE_CODE; }
    bool     is_observed() const { return settings.observe; }

    // why what is to be a device's is computed on the CPU; "" if nothing is
    const std::string & get_fallback() const { return fallback; }

    llama_minicache_mode get_mode() const { return mode; }

    bool is_cell_used(uint32_t strm, uint32_t cell) const { return !v_cells[strm].is_empty(cell); }

    // Takes down what the ubatch's K is coded relative to. A cell's offset is no part of what upstream keeps of a cell, and
    // the ubatch's positions are known to us first when its inputs are set.
    void set_offsets(const llama_ubatch & ubatch, const slot_info & sinfo) const;

    // I32 [n_kv, n_stream, 1 or 2]: what each cell holds for the ubatch at sinfo, and its base, see ggml_minicache_index()
    void set_input_cells(ggml_tensor * dst, const slot_info & sinfo) const;

    // I32 [n_tokens]: the base of each token of the ubatch at sinfo
    void set_input_bases(ggml_tensor * dst, const slot_info & sinfo) const;

    // I32 [n_slot*n_stream]: by how much the K of a slot's token is to be shifted
    void set_input_slot_shift(ggml_tensor * dst, const minicache_group & group) const;

    // the group's slots in host memory, stream by stream
    std::vector<int32_t> read_slots(const minicache_group & group) const;

  protected:
    ggml_cgraph * build_graph_shift(llm_graph_result * res, llama_context * lctx) const override;

    void state_write_data(llama_io_write_i & io, const cell_ranges_t & cr) const override;
    bool state_read_data(llama_io_read_i & io, uint32_t strm, uint32_t cell_count, const slot_info & sinfo) override;

  private:
    llama_kv_cache_minicache(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
        const layer_filter_cb & filter, const minicache_settings & settings, const minicache_grouping & grouping);

    void add_plain_layers(const minicache_plan * plan, const layer_filter_cb & filter, bool offload);
    bool takes_own_op(ggml_backend_dev_t dev, const kv_layer & layer);
    void note_fallback(const std::string & what);
    void add_groups();

    // the groups' codes; the result is how RoPE turns each of them
    std::vector<minicache_rope_turn> add_shapes(const minicache_plan & plan, const llama_cparams & cparams);

    std::string missing_ops(ggml_backend_dev_t dev, const minicache_group & group) const;
    void        allocate(const minicache_plan * plan, bool offload);
    void        write_codecs(const minicache_plan & plan, const std::vector<minicache_rope_turn> & turns);
    void        write_bases(const minicache_plan & plan);
    void        init_rotation();

    int32_t base_of(uint32_t strm, uint32_t cell) const { return v_cells[strm].pos_get(cell) - offsets[strm][cell]; }

    // what a layer's rows are of, F32 where they are codes
    minicache_layer_types kept_types(int32_t il) const;

    // throws where there is no room
    static ggml_backend_buffer_t allocate_tensors(ggml_context * ctx, ggml_backend_buffer_type_t buft, bool no_alloc);

    std::string describe() const;

    void write_retained(llama_io_write_i & io, const minicache_group & group, const cell_ranges_t & cr) const;
    void read_retained(llama_io_read_i & io, const minicache_group & group, uint32_t strm, const slot_info & sinfo);

    // throws if the cells of a saved state do not fit
    void check_room(const std::vector<uint32_t> & cell_counts, llama_seq_id seq_id) const;

    const minicache_settings settings;  // its plan is let go of when it is in place
    const minicache_grouping grouping;

    const llama_minicache_mode mode;

    const int32_t  rope_block;
    const uint64_t plan_hash;  // 0 without a plan

    const ggml_type cache_type_k;  // of directions, and of plain layers that a plan does not name
    const ggml_type cache_type_v;
    const int32_t   block;   // cells per retained slot, 0 without
    const int32_t   window;  // latest tokens of a stream that are kept as they are

    std::vector<minicache_group> groups;
    std::vector<int32_t>         group_of_layer;
    std::vector<bool>            own_op;  // by layer
    std::string                  fallback;

    // Codecs and bases stay when the cache is cleared, so they are not among the base class's buffers.
    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> codec_bufs;

    // [n_stream][kv_size] position of a cell's token minus the base its K is coded relative to; empty without codes
    mutable std::vector<std::vector<int32_t>> offsets;
};
